"""Generated corpora for the specialists: `generate("runic", "train")`, or as files by `write_corpora(folder)`."""

from __future__ import annotations

from .example import TEXT_KINDS, Example, read_examples, write_examples
from .generate import generate
from .registry import SPECIALISTS
from .settings import CorpusSettings
from .sides import SIDES
from .specialists import Specialist
from .write import write_corpora

__all__ = [
    "SIDES",
    "SPECIALISTS",
    "TEXT_KINDS",
    "CorpusSettings",
    "Example",
    "Specialist",
    "generate",
    "read_examples",
    "write_corpora",
    "write_examples",
]
