"""The held-out cases: structures and phrasings that no training side has."""

from __future__ import annotations

from collections.abc import Sequence

from ..corpora import CorpusSettings, Example, generate

# Explanations and questions of routing are at most one in seven of a corpus.
_MORE = 1.25


def test_cases(names: Sequence[str], size: int, seed: int) -> dict[str, list[Example]]:
    """Returns the test side of specialists: `size` conversions in all, and the explanations that come along.

    Args:
        names: the specialists, who get about as many conversions each.
        size: conversions in all.
        seed: of what is drawn.

    Raises:
        ValueError: there are fewer conversions than specialists.
    """
    if size < len(names):
        raise ValueError(f"size: expected at least {len(names)}, one for each specialist, got {size}")
    cases = {}
    for place, name in enumerate(names):
        wanted = size // len(names) + (place < size % len(names))
        drawn = generate(name, "test", CorpusSettings(test_size=int(wanted * _MORE) + 20, seed=seed))
        last = [place for place, example in enumerate(drawn) if example.is_conversion][wanted - 1]
        cases[name] = drawn[: last + 1]
    return cases
