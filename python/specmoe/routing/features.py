"""A query as hashed n-grams of characters and words, with how it begins and ends and what its shape is."""

from __future__ import annotations

import re

import numpy as np
import xxhash

_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_WORDS = re.compile(r"[a-z]+(?:'[a-z]+)?|0|[^\sa-z0]")
_ENDS = frozenset(".?!")
_SELF = frozenset(("i", "me", "my", "mine", "i'm", "i've", "i'd", "i'll"))
# Lengths of the n-grams of characters, and the odd multiplier of their rolling hash.
_CHARACTERS = (3, 4, 5)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HIGH = np.uint64(40)  # the upper bits of a product depend on all of the lower ones
# A longer query is judged by its beginning and its end.
MAX_CHARACTERS = 2000


def normalized(text: str) -> str:
    """Returns a query in lower case, each number as 0, single spaces, at most `MAX_CHARACTERS` long."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS // 2]} {text[-MAX_CHARACTERS // 2 :]}"
    return " ".join(_DIGITS.sub("0", text.lower()).split())


def named_features(text: str) -> list[str]:
    """Returns the features of words, by name: single words, pairs, and where and in what shape of query they stand.

    A query of several sentences asks in the last one, so its first words count too; numbers and sentences are counted,
    which tells a story with a sum from talk about one.
    """
    return _named(normalized(text))


def _named(text: str) -> list[str]:
    words = _WORDS.findall(text)
    pairs = [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
    ends = [place for place, word in enumerate(words) if word in _ENDS]
    asked = words[next((end + 1 for end in reversed(ends) if end < len(words) - 1), 0) :]
    numbers, sentences = min(words.count("0"), 4), min(len(ends), 4)
    return [
        *words,
        *pairs,
        *(f"^{place} {word}" for place, word in enumerate(words[:3])),
        *(f"?{place} {word}" for place, word in enumerate(asked[:3])),
        f"? {' '.join(asked[:2])}",
        *(f"${place} {word}" for place, word in enumerate(words[:-4:-1])),
        f"#numbers {numbers}",
        f"#sentences {sentences}",
        f"#words {min(len(words) // 4, 8)}",
        f"#numbers {min(numbers, 2)} in sentences {min(sentences, 3)}",
        f"#speaks of itself {not _SELF.isdisjoint(words)}",
    ]


def hashed_features(text: str, buckets: int) -> np.ndarray:
    """Returns the buckets of a query's features.

    Args:
        text: the query.
        buckets: number of buckets, a power of two.

    Returns:
        (features) int64, each in [0, buckets); the same feature may come twice. Empty for an empty query.
    """
    mask = buckets - 1
    text = normalized(text)
    if not text:
        return np.zeros(0, dtype=np.int64)
    mask = buckets - 1
    words = [xxhash.xxh64_intdigest(name.encode()) & mask for name in _named(text)]
    return np.concatenate([np.array(words, dtype=np.int64), *_characters(text, mask)])


def _characters(text: str, mask: int) -> list[np.ndarray]:
    data = np.frombuffer(f" {text} ".encode(), dtype=np.uint8).astype(np.uint64)
    found = []
    # Each length goes on from the one before: the hash of four is that of three and one more.
    rolling = np.ones(len(data), dtype=np.uint64)
    for length in range(1, max(_CHARACTERS) + 1):
        rolling = (rolling[: len(data) - length + 1] ^ data[length - 1 :]) * _MULTIPLIER
        if length in _CHARACTERS:
            found.append(((rolling >> _HIGH) & np.uint64(mask)).astype(np.int64))
    return found
