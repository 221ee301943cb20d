"""Keeps bitsandbytes from repacking 4-bit weights in place."""

from __future__ import annotations

from typing import Any


def keep_unpacked(model: Any) -> Any:
    """Makes every 4-bit layer of a model keep its weights as they were stored, and returns the model.

    On CPUs with AVX512-BF16 the first forward without gradients in evaluation mode packs a layer's weights for another
    kernel. After that no gradient passes through the layer any more, without an error, and what `state_dict` turns back
    is not what was stored: the scales have been rounded to bfloat16.
    """
    for module in model.modules():
        # What `Linear4bit.forward` asks before it packs.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
