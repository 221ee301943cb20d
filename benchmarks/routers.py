"""Routers of transformers, as they are and as `moe_kernels.patch(model, routers=True)` leaves them.

python benchmarks/routers.py

The linear map to the logits is in both, and timed alone as well. Medians of interleaved calls, in microseconds.
"""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from moe_kernels.integrations.routers import patched

SECONDS = 1.5
TOKENS = (1, 8, 64, 512)


def routers() -> dict[str, tuple[nn.Module, torch.dtype]]:
    """The routers of three published models, and the dtype of their hidden states."""
    mixtral = SimpleNamespace(num_experts_per_tok=2, num_local_experts=8, hidden_size=4096)
    qwen = SimpleNamespace(num_experts_per_tok=8, num_experts=128, hidden_size=2048, norm_topk_prob=True)
    deepseek = SimpleNamespace(num_experts_per_tok=8, num_local_experts=256, hidden_size=7168, norm_topk_prob=True)
    deepseek.__dict__.update(routed_scaling_factor=2.5, n_group=8, topk_group=4)
    return {
        "Mixtral-8x7B": (MixtralTopKRouter(mixtral).bfloat16(), torch.bfloat16),
        "Qwen3-30B-A3B": (Qwen3MoeTopKRouter(qwen).bfloat16(), torch.bfloat16),
        # It computes its logits in float32; its weight is so already here.
        "DeepSeek-V3": (DeepseekV3TopkRouter(deepseek), torch.float32),
    }


@torch.no_grad()
def main() -> None:
    print("| router | T | transformers | ours | the logits alone |\n|---|---:|---:|---:|---:|")
    for name, (theirs, dtype) in routers().items():
        nn.init.normal_(theirs.weight, std=0.02)
        ours = patched(copy.deepcopy(theirs))
        for T in TOKENS:
            x = torch.randn(T, theirs.weight.shape[1], dtype=dtype)
            arms = (partial(theirs, x), partial(ours, x), partial(nn.functional.linear, x, theirs.weight))
            times: list[list[float]] = [[] for _ in arms]
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                for arm, taken in zip(arms, times, strict=True):
                    begin = time.perf_counter()
                    arm()
                    taken.append(time.perf_counter() - begin)
            figures = " | ".join(f"{statistics.median(taken) * 1e6:.0f}" for taken in times)
            print(f"| {name} | {T} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
