"""Which guesses are worth what they push out.

Letters: E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from ..store import ExpertKey
from .eviction import EvictionPolicy

# A guess below this probability is not queued: calibration by rank does not resolve less.
LEAST_PROBABILITY = 0.01
# How many times as many experts as a layer will use are looked at, where the policy tells what they would push out.
LOOK_AT = 3.0
# A guess is at least this share as likely as what would go for it is worth. Less than one, because a guess that proves
# wrong is the first to go, and what went for it would have gone next anyway.
LEAST_SHARE = 0.3


def worth_a_slot(
    layer: int,
    chances: np.ndarray,
    absent: Callable[[Iterable[ExpertKey]], list[ExpertKey]],
    free: int,
    policy: EvictionPolicy,
    ahead: int | None = None,
) -> list[tuple[int, float]]:
    """Return (expert, chance) of a layer's experts that may be loaded ahead, the likeliest first.

    The policy is told of the chances first, so that nothing goes that is likelier than the guess that comes. Where it
    values what is resident, guesses that are not worth what would go for them are left out.

    Args:
        layer: the layer that the chances are for.
        chances: (E,) probabilities of use.
        absent: returns those of some experts that have no slot.
        free: slots that hold nothing.
        policy: order of eviction.
        ahead: how many experts are looked at; None for as many as the probabilities add up to, and more where the
            policy values what is resident.
    """
    policy.coming(layer, chances)
    lowest = getattr(policy, "lowest", None)
    if ahead is None:
        ahead = math.ceil(float(chances.sum()) * (1.0 if lowest is None else LOOK_AT) - 1e-6)
    order = np.argsort(-chances, kind="stable")[:ahead].tolist()
    keys = absent([ExpertKey(layer, e) for e in order if chances[e] >= LEAST_PROBABILITY])
    found = [(key.expert, float(chances[key.expert])) for key in keys]
    if lowest is None or len(found) <= free:
        return found
    values = lowest(len(found) - free)
    kept = found[:free]
    for (expert, chance), value in zip(found[free:], values, strict=False):
        if chance <= LEAST_SHARE * value:
            break
        kept.append((expert, chance))
    return kept
