"""Prompts with words that say nothing, so that what does is learned: the notations that are named, and the value."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from ...notation import parse, render
from ..corpora import CorpusSettings, Example
from ..corpora.sides import TRAIN
from ..corpora.words import Words
from ..requests import understand

# With a notation to write they all ask for the same.
_VERBS = re.compile(r"\b(?:convert|translate|write|express|turn|give|show|change|encode|render)\b", re.IGNORECASE)
_BEFORE = ("{} ", "{}, ", "{} {} ", "{} {}, ", "{}, {} ", "{} {} {} ", "{} {} {} {} ")
_AFTER = (" {}", " {} {}", ", {}", ", {} {} {}", "!")


def with_fillers(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Returns examples of which some have other words around what they ask for; what they ask for stays.

    Users have more ways of asking than the corpora: a small model that has seen those alone looks for them.

    Args:
        examples: of the training side.
        share: of the examples that are changed, where they can be.
        seed: of the words and of who is changed.
    """
    draw = random.Random(f"fillers {seed}")
    words = Words(draw, TRAIN, CorpusSettings(made_words=0.6))
    return [_changed(each, draw, words) if draw.random() < share else each for each in examples]


def _changed(example: Example, draw: random.Random, words: Words) -> Example:
    if not example.answer:
        return example
    text = str(render(parse(example.answer, "hlxl"), example.source))
    before, _, after = example.prompt.partition(text)
    if example.is_conversion and example.kind != "parse" and draw.random() < 0.5:
        before = _VERBS.sub(lambda verb: _like(words.word(), verb.group()), before, count=1)
    if draw.random() < 0.6:
        begun = before[:1].lower() + before[1:] if before[1:2].islower() else before
        before = _filled(draw.choice(_BEFORE), words).capitalize() + begun
    # Behind the value it could be taken for a part of it, and behind a question mark it is none.
    if after and not after.endswith("?") and draw.random() < 0.4:
        after = after.rstrip(".!") + _filled(draw.choice(_AFTER), words)
    changed = dataclasses.replace(example, prompt=f"{before}{text}{after}")
    return changed if _asks(changed.prompt) == _asks(example.prompt) else example


def _filled(pattern: str, words: Words) -> str:
    return pattern.format(*(words.word() for _ in range(pattern.count("{}"))))


def _like(word: str, other: str) -> str:
    return word.capitalize() if other[0].isupper() else word


def _asks(prompt: str) -> tuple[str, str, str]:
    """Returns what the codec finds in a prompt: a word may be one that asks for something else."""
    request = understand(prompt)
    return (request.span.text if request.span else "", request.source, request.target)
