"""What generated text is like: how varied, how much it repeats itself, how often it ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Words, numbers and single signs: the same for every tokenizer, so that models can be compared.
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class TextMetrics:
    """Figures of a set of texts.

    Attributes:
        words: mean length in words and signs.
        distinct_1, distinct_2: different words and pairs as a share of all (Li et al. 2016).
        repeat_4: share of a text's runs of four words that it had before.
    """

    words: float
    distinct_1: float
    distinct_2: float
    repeat_4: float


def words_of(text: str) -> list[str]:
    """Returns the words and signs of a text."""
    return _WORD.findall(text)


def text_metrics(texts: Sequence[Sequence[str]]) -> TextMetrics:
    """Returns the figures of texts that `words_of` has split."""
    mean = sum(map(len, texts)) / max(1, len(texts))
    return TextMetrics(mean, distinct(texts, 1), distinct(texts, 2), repeat_rate(texts, 4))


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Returns the share of different n-grams among all of all texts, 0 where there are none."""
    grams = [gram for words in texts for gram in _grams(words, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeat_rate(texts: Sequence[Sequence[str]], n: int = 4) -> float:
    """Returns the share of n-grams that their own text had before, over all texts, 0 where there are none."""
    grams = [_grams(words, n) for words in texts]
    total = sum(map(len, grams))
    return sum(len(of) - len(set(of)) for of in grams) / total if total else 0.0


def equal_lengths(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Returns texts and references, both of a pair cut to the shorter one: long texts repeat more than short ones."""
    lengths = [min(len(text), len(reference)) for text, reference in zip(texts, references, strict=True)]
    return (
        [text[:length] for text, length in zip(texts, lengths, strict=True)],
        [reference[:length] for reference, length in zip(references, lengths, strict=True)],
    )


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))
