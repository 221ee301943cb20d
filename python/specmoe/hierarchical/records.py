"""The records that an expert learns, and those that it never sees."""

from __future__ import annotations

from ..training.data import Record, load_domain, split
from ..training.data.records import shuffled
from .plan import Plan

# Generated domains: each further draw has other problems.
GENERATED = ("math", "reasoning", "conversation")
# The most records of a validation or test side: more would take longer to evaluate and say little more.
HELD_OUT = 300


def domain_records(plan: Plan, domain: str, first_draw: int = 0) -> dict[str, list[Record]]:
    """Returns a domain's records of "train", "validation" and "test".

    A record's side is a function of its prompt, so that what is held out in one draw is in no other draw's training.

    Args:
        plan: where the records come from.
        domain: the domain.
        first_draw: the first of `plan.size.draws` draws of a generated domain.

    Raises:
        DataError: no records, unreadable ones, or too few.
    """
    source = plan.sources.get(domain)
    draws = plan.size.draws if source is None and domain in GENERATED else 1
    records = [
        record
        for draw in range(first_draw, first_draw + draws)
        for record in load_domain(domain, source, plan.limit, seed=plan.seed + draw)
    ]
    sides = split(records, seed=plan.seed)
    held = {side: shuffled(sides[side], HELD_OUT, plan.seed) for side in ("validation", "test")}
    return {"train": sides["train"], **held}
