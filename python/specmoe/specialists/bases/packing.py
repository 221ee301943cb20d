"""Keeps weights as they were stored: bitsandbytes repacks 4-bit ones in place, torch copies the output layer's."""

from __future__ import annotations

from typing import Any

import torch


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


def keep_output_in_place(model: Any) -> Any:
    """Has the output layer of a model read its weight where it lies, and returns the model.

    Given the last token's state as a slice of all, whose strides are theirs, torch 2.13 copies the whole weight on a
    CPU in bfloat16: 445 MiB in each forward of a model with 151,936 tokens of 1,536 values.
    """

    def contiguous(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (given[0].clone(memory_format=torch.contiguous_format), *given[1:])

    model.get_output_embeddings().register_forward_pre_hook(contiguous)
    return model
