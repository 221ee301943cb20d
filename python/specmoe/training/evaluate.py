"""Loss on the whole validation split."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .windows import IGNORED_LABEL

# Large enough to fill the matrix units, small enough for the logits and activations of any preset.
EVALUATION_TOKENS = 16384


@torch.no_grad()
def whole_split_loss(model: PreTrainedModel, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the mean cross-entropy over every labelled token.

    Args:
        model: a causal language model; its mode (training or evaluation) is restored afterwards.
        inputs: (windows, block) token ids.
        labels: (windows, block), the token after each input; -100 is not counted.

    Returns:
        Nats per token.
    """
    was_training = model.training
    model.eval()
    total = 0.0
    rows = max(1, EVALUATION_TOKENS // inputs.shape[1])
    for input_rows, label_rows in zip(inputs.split(rows), labels.split(rows), strict=True):
        logits = model(input_ids=input_rows.to(model.device), use_cache=False).logits
        losses = F.cross_entropy(
            logits.float().flatten(0, 1),
            label_rows.to(model.device).flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="none",
        )
        # Summed on the host in float64: the total over 1e5 tokens keeps its digits, on devices without float64 too.
        total += losses.cpu().double().sum().item()
    model.train(was_training)
    return total / int((labels != IGNORED_LABEL).sum())


def perplexity(cross_entropy: float) -> float:
    """Returns exp(cross-entropy in nats): V for a uniform guess among V symbols, 1 for a perfect model."""
    return math.exp(cross_entropy)
