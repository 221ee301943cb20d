"""Noise, masking and mixing of samples. They act on sets of experts, before anything is embedded or reshaped.

Letters: B samples, P positions, E experts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .configurations import LearnedSettings


def augmented(
    sets: Tensor, exists: Tensor, target: Tensor, layers: Tensor, rng: np.random.Generator, settings: LearnedSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Return changed sets (B, P, E), positions that exist (B, P) and targets (B, E).

    - noise: a position gets the set of another sample of the batch whose target is the same layer, where there is one;
    - masking: a position is hidden;
    - mixing: a sample and another of the same layer are averaged, targets too.
    """
    B, P, _ = sets.shape
    if not (settings.noise or settings.mask or settings.mix):
        return sets, exists, target
    partner = same_layer_partner(layers, rng)
    if settings.noise:
        noisy = torch.from_numpy(rng.random((B, P)) < settings.noise)
        sets = torch.where(noisy[..., None], sets[partner], sets)
    if settings.mask:
        exists = exists & torch.from_numpy(rng.random((B, P)) >= settings.mask)
    if settings.mix:
        share = torch.from_numpy(rng.beta(settings.mix, settings.mix, B).astype(np.float32))
        sets = share[:, None, None] * sets + (1 - share)[:, None, None] * sets[partner]
        target = share[:, None] * target + (1 - share)[:, None] * target[partner]
    return sets, exists, target


def same_layer_partner(layers: Tensor, rng: np.random.Generator) -> Tensor:
    """Return (B,): for each sample another with the same target layer, or itself."""
    order = torch.from_numpy(rng.permutation(len(layers)))
    order = order[torch.argsort(layers[order], stable=True)]
    following = torch.roll(order, -1)
    same = layers[order] == layers[following]
    partner = torch.empty_like(order)
    partner[order] = torch.where(same, following, order)
    return partner
