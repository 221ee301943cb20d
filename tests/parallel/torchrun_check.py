"""A check of checks.py as a program that torchrun starts."""

from __future__ import annotations

import torch.distributed as dist
from checks import layer

if __name__ == "__main__":
    dist.init_process_group("gloo")
    layer(dist.group.WORLD, tokens=[5, 3], E=5, options={})
    print(f"rank {dist.get_rank()} is equal")
    dist.destroy_process_group()
