"""Prompts with words that say nothing, so that what does is learned: the notations that are named, and the value."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from ...notation import parse, render
from ..corpora import CorpusSettings, Example
from ..corpora.phrasings import ALIASES
from ..corpora.sides import TRAIN
from ..corpora.words import Words
from ..requests import understand

# The letters of the notations' names.
_NAMED = {part for names in ALIASES.values() for name in names for part in name.lower().split("-")}
# What a word of a prompt is besides the notations' names, with the punctuation that stays.
_WORD = re.compile(r"\b[A-Za-z]+\b(?!-)")
_BEFORE = ("{} ", "{}, ", "{} {} ", "{} {}, ", "{}, {} ", "{} {} {} ", "{} {} {} {} ")
_AFTER = (" {}", " {} {}", ", {}", ", {} {} {}", "!")
# Of the words where only the notations say what is wanted, so many become others; behind so many another one follows.
_OTHER, _MORE = 0.3, 0.1


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
    # Where something is to be parsed or explained, the verb says so.
    other = _OTHER if example.is_conversion and example.kind != "parse" and draw.random() < 0.6 else 0.0
    before, after = (_with_others(part, other, draw, words) for part in (before, after))
    if draw.random() < 0.5:
        begun = before[:1].lower() + before[1:] if before[1:2].islower() else before
        before = _filled(draw.choice(_BEFORE), words).capitalize() + begun
    # Behind the value it could be taken for a part of it, and behind a question mark it is none.
    if after and not after.endswith("?") and draw.random() < 0.4:
        after = after.rstrip(".!") + _filled(draw.choice(_AFTER), words)
    changed = dataclasses.replace(example, prompt=f"{before}{text}{after}")
    return changed if _asks(changed.prompt) == _asks(example.prompt) else example


def _with_others(prose: str, share: float, draw: random.Random, words: Words) -> str:
    """Returns what stands before or behind a value with some words become others, and some more words."""

    def replaced(found: re.Match[str]) -> str:
        word = found.group()
        if word.lower() in _NAMED:
            return word
        if draw.random() < share:
            other = words.word()
            word = other.capitalize() if word[0].isupper() else other
        return f"{word} {words.word()}" if draw.random() < _MORE else word

    return _WORD.sub(replaced, prose)


def _filled(pattern: str, words: Words) -> str:
    return pattern.format(*(words.word() for _ in range(pattern.count("{}"))))


def _asks(prompt: str) -> tuple[str, str, str]:
    """Returns what the codec finds in a prompt: a word may be one that asks for something else."""
    request = understand(prompt)
    return (request.span.text if request.span else "", request.source, request.target)
