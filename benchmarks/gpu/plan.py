"""Which rows are measured, in the order of their importance: what the time does not suffice for is at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from gpu import arms, decode, experts, offload, steps
from gpu.context import Context
from gpu.results import Row
from gpu.shapes import MODELS

# The functions fill in a row. The names are those of the table.
GROUPS: dict[str, Callable[[Context, Row], None]] = {
    "forward": experts.forward,
    "forward+backward": experts.training,
    "decode": decode.decode,
    "quantized": decode.quantized,
    "permute": steps.permute_rows,
    "unpermute": steps.unpermute_rows,
    "topk_gating": steps.gating,
    "route": steps.routing,
    "memory": experts.memory,
    "batch_invariant": experts.batch_invariant,
    "offload": offload.offload,
    "grouped_lora": steps.lora,
}
MANY, SOME = 32768, 4096


def rows(device: torch.device, small: bool) -> list[Row]:
    """Return the empty rows, those of one case beside each other."""
    ours, peers = arms.ours(device), list(arms.PEERS)
    many, some = (96, 32) if small else (MANY, SOME)
    served = ("Qwen3-30B-A3B", "Mixtral-8x7B")
    models = served if small else tuple(MODELS)

    def cross(group: str, cases: Iterable[str], counts: Iterable[int], who: list[str]) -> list[Row]:
        return [Row(group, case, T, arm) for case in cases for T in counts for arm in who]

    formats = [f"{name} {kind}" for kind in decode.FORMATS for name in ours]
    return [
        *cross("forward", models, [many], ours + peers),
        *cross("forward+backward", models, [many], ours + peers),
        *cross("decode", served, (1, 8) if small else (1, 8, 64), [*ours, *peers]),
        *cross("topk_gating", served[:1], (1, some) if small else (1, 64, some), ours),
        *cross("route", served[:1], (1, some) if small else (1, 64, some), ours),
        *cross("permute", ("Qwen3-30B-A3B", "DeepSeek-V3"), [many], ours),
        *cross("memory", ("OLMoE", "Mixtral-8x7B"), [some], ours),
        # A format's weights are kept from row to row: the format is outermost.
        *(
            row
            for case in served
            for kind in decode.FORMATS
            for row in cross("quantized", [case], (1, 4, 16), [f for f in formats if f.endswith(kind)])
        ),
        *cross("batch_invariant", served, [some, 8], ours),
        *cross("unpermute", ("Qwen3-30B-A3B", "DeepSeek-V3"), [many], ours),
        *cross("grouped_lora", ("G16-R16", "G64-R16", "G64-R64"), (64, some), ours),
        *cross("forward", models, [some], ours + peers),
        *cross("forward+backward", models, [some], ours + peers),
        # Each first writes a gigabyte of experts to the disk.
        *cross("offload", ("Qwen3-30B-A3B 25%", "Qwen3-30B-A3B 50%"), [1], ours),
    ]
