"""Run one peer on small cases: `python probe.py PEER DTYPE`. The exit status says whether it works here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402

from moe_kernels.testing import expert_inputs, naive_experts, relative_error  # noqa: E402
from peers import Tokens, sglang, vllm  # noqa: E402

PEERS = {"vllm": vllm.pack, "sglang": sglang.pack, "sglang-int8": sglang.pack_int8}


# Few and many rows an expert take different paths.
COUNTS = (1, 4, 16, 64, 400)


def main(peer: str, dtype: str) -> None:
    for T in COUNTS:
        inputs = expert_inputs(T, 8, 2, 256, 128)
        narrow = inputs.to(getattr(torch, dtype))
        call = PEERS[peer](narrow.gate_up, narrow.down, 1)
        indices, routing = inputs.indices, narrow.weights
        got = call(0, Tokens(narrow.x, indices, indices.long(), routing, routing.to(narrow.x.dtype)))
        error = relative_error(got, naive_experts(inputs))
        if not error < 0.05:
            raise ValueError(f"T={T}: relative error {error:.2g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
