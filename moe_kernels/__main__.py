"""`python -m moe_kernels`: what works on this machine, and why the rest does not."""

from __future__ import annotations

import platform
import sys

import torch

import moe_kernels
from moe_kernels.registry import BACKENDS, OPS, why_not


def main() -> int:
    print(f"moe_kernels {moe_kernels.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"device: {device}, {torch.get_num_threads()} threads\n")
    found = moe_kernels.available_backends()
    for backend in BACKENDS:
        reason = found[backend.name]
        print(f"{backend.name:<10} {backend.devices:<20} {'works' if reason is None else 'no: ' + reason}")
    probe = torch.empty(0)
    usable = [b.name for b in BACKENDS if found[b.name] is None]
    print(f"\n{'op':<26}" + "".join(f"{name:<12}" for name in usable))
    for op in OPS:
        served = ("yes" if why_not(name, op, probe) is None else "no" for name in usable)
        print(f"{op:<26}" + "".join(f"{mark:<12}" for mark in served))
    return 0


if __name__ == "__main__":
    sys.exit(main())
