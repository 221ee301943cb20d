"""How large the values of the corpora are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CorpusSettings:
    """Sizes that a model of a few million parameters can learn in minutes.

    Attributes:
        size: training examples of each specialist.
        test_size: test examples of each specialist.
        seed: of everything that is drawn.
        digits: most digits of an integer.
        float_digits: most digits before and after a float's point.
        byte_form_integer: largest integer of 0 or more where LC-B is read or written, since its hexadecimal has to be
            known by heart.
        string_words: most words of a string.
        bytes_length: most bytes of a byte string; they are lower-case letters.
        array_length: most items of an array.
        object_fields: most fields of an object.
        contract_fields: most fields of a contract.
        depth: most arrays, objects and contracts in each other.
        text_length: most characters of a value in HLXL.
        new_words: share of the words on the test side that no training example has.
        made_words: share of words that are made of syllables and are none of the common ones.
    """

    size: int = 20_000
    test_size: int = 1_000
    seed: int = 0
    digits: int = 4
    float_digits: tuple[int, int] = (3, 2)
    byte_form_integer: int = 255
    string_words: int = 3
    bytes_length: int = 4
    array_length: int = 6
    object_fields: int = 4
    contract_fields: int = 4
    depth: int = 3
    text_length: int = 48
    new_words: float = 0.5
    made_words: float = 0.3

    def __post_init__(self) -> None:
        for name in ("size", "test_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"corpus: {name}: expected 1 or more, got {getattr(self, name)}")
