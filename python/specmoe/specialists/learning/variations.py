"""Other values for a corrected phrasing, and other words for its name: the rule is learned and not the one answer."""

from __future__ import annotations

import dataclasses
import random

from ...notation import Contract, Handle, Value, find_value, render
from .. import requests
from ..corpora import CorpusSettings, Example
from ..corpora.phrasings import draws
from ..corpora.random_values import VALUE_KINDS, RandomValues
from ..corpora.sides import TEST, TRAIN
from ..corpora.words import Words
from .log import Correction
from .rules import Rule


def variations(
    correction: Correction, rule: Rule, count: int, seed: int, side: str = TRAIN, reworded: float = 0.5
) -> list[Example]:
    """Returns examples of a rule with other values: half of the corrected value's structure, half of any.

    Args:
        correction: the correction.
        rule: its rule.
        count: how many.
        seed: another one gives others.
        side: "test" takes words that no corpus is trained on, and the corrected value's structure only.
        reworded: share of them in other words, the side's phrasings, where the rule has a name.
    """
    draw = random.Random(f"variations {seed} {side} {correction.query}")
    settings = CorpusSettings()
    words = Words(draw, side, settings)
    span = find_value(correction.query)
    assert span is not None  # it has a rule
    given = span.readings[rule.source]
    values = RandomValues(draw, side, settings)
    found: dict[str, Example] = {}
    for _ in range(50 * count):
        if side == TEST or draw.random() < 0.5:
            value = varied(given, draw, words)
        else:
            value = values.value(draw.choice(VALUE_KINDS), False, "lc-b" in (rule.source, rule.target))
        around = (rule.before, rule.after)
        if rule.name and draw.random() < reworded:
            around = _other_words(rule.name, draw, side)
        if (example := _example(correction, rule, value, *around)) is not None:
            found.setdefault(example.prompt, example)
        if len(found) == count:
            break
    return list(found.values())


def in_plain_words(example: Example, rule: Rule) -> Example:
    """Returns a variation asked in words that every specialist is trained on."""
    span = find_value(example.prompt)
    assert span is not None  # a variation has a value
    return dataclasses.replace(example, prompt=requests.in_plain_words(span.text, rule.source, rule.target))


def varied(value: Value, draw: random.Random, words: Words) -> Value:
    """Returns a value of the same structure with other numbers and words."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        digits = len(str(abs(value)))
        number = draw.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
        # LC-B's hexadecimal is known by heart up to 255.
        number = min(number, 255) if 0 <= value <= 255 else number
        return -number if value < 0 else number
    if isinstance(value, float):
        return float(f"{draw.randint(0, 99)}.{draw.randint(1, 9)}")
    if isinstance(value, str):
        return " ".join(words.word() for _ in value.split(" "))
    if isinstance(value, bytes):
        return bytes(draw.choice(b"abcdefghijklmnopqrstuvwxyz") for _ in value)
    if isinstance(value, Handle):
        return Handle(words.word())
    if isinstance(value, Contract):
        return Contract(value.id, {field: varied(part, draw, words) for field, part in value.fields.items()})
    if isinstance(value, dict):
        return {words.name(): varied(part, draw, words) for part in value.values()}
    return [varied(part, draw, words) for part in value]


def _other_words(name: str, draw: random.Random, side: str) -> tuple[str, str]:
    """Returns what stands before and behind a value where it is asked for by a name in words of the corpora."""
    pattern = draw.choice(draw.choice(draws("convert", side)))
    before, _, after = pattern.replace("{to}", name).partition("{text}")
    return before, after


def _example(correction: Correction, rule: Rule, value: Value, before: str, after: str) -> Example | None:
    """Returns an example, None where the phrasing and the value together would be read as another value."""
    text = str(render(value, rule.source))
    prompt = f"{before}{text}{after}"
    span = find_value(prompt)
    if span is None or (span.start, span.text) != (len(before), text):
        return None
    completion = str(render(value, rule.target))
    name = correction.specialist
    return Example(prompt, completion, name, kind="correction", source=rule.source, target=rule.target, route=name)
