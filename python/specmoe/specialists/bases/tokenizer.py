"""The default base's tokenizer: one token for a byte, and one for each rune and for the names of the notations."""

from __future__ import annotations

from functools import cache
from typing import Any

from ...training.data import Record, train_tokenizer
from ..corpora.phrasings import ALIASES

_RUNES = "🐊🐁🐂🐃🐄🜊🜁🜂🜃🜄∅⊤⊥⟁⊠◇◆"
VOCABULARY = 384


@cache
def byte_tokenizer(max_length: int = 512) -> Any:
    """Returns the tokenizer.

    What is copied has a token for each byte: a merged piece of a word would be met too seldom to be copied where it is
    new. What the notations are made of is met all the time.

    Args:
        max_length: the longest text of the model, in tokens.
    """
    names = sorted({name for aliases in ALIASES.values() for name in aliases})
    pieces = [*_RUNES, *names]
    # Each stands alone and behind a space.
    return train_tokenizer([Record(f"{piece} {piece}", piece, "notation") for piece in pieces], VOCABULARY, max_length)
