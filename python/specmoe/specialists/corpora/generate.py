"""Examples from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TypeVar

from ...notation import Value, readings, render
from .example import Example
from .explanations import FACTS, explain
from .phrasings import ALIASES, draws
from .random_values import VALUE_KINDS, RandomValues
from .registry import SPECIALISTS, specialist_named
from .settings import CorpusSettings
from .shapes import shape_of
from .sides import SIDES, TRAIN

_Choice = TypeVar("_Choice")
# So many prompts that were there before, one after the other, mean that there are no others.
_TRIES = 2000


def generate(name: str, side: str, settings: CorpusSettings | None = None) -> list[Example]:
    """Returns the examples of a specialist, no two with the same prompt.

    Args:
        name: one of `SPECIALISTS`.
        side: "train" or "test"; the sides share no structure of a value and no phrasing.
        settings: sizes and the seed; None for the defaults.

    Raises:
        ValueError: another name or side, or sizes that do not allow as many examples.
    """
    specialist_named(name)
    if side not in SIDES:
        raise ValueError(f"corpus: side: expected {' or '.join(SIDES)}, got {side!r}")
    settings = settings or CorpusSettings()
    wanted = settings.size if side == "train" else settings.test_size
    found: dict[str, Example] = {}
    failed = 0
    for example in _Generator(name, side, settings).examples():
        failed = failed + 1 if example.prompt in found else 0
        found.setdefault(example.prompt, example)
        if len(found) == wanted:
            return list(found.values())
        if failed == _TRIES:
            break
    raise ValueError(f"corpus: {name}: expected sizes that allow {wanted} examples, got {len(found)} different prompts")


class _Generator:
    def __init__(self, name: str, side: str, settings: CorpusSettings) -> None:
        self.specialist = SPECIALISTS[name]
        self.side = side
        self.settings = settings
        self.draw = random.Random(f"corpus {settings.seed} {name} {side}")
        self.values = RandomValues(self.draw, side, settings)
        self.pairs = {**self.specialist.pairs, **(self.specialist.harder if side == TRAIN else {})}

    def examples(self) -> Iterator[Example]:
        while True:
            yield self.example()

    def example(self) -> Example:
        kind = self.one_of(self.specialist.kinds)
        if kind == "routing":
            return self.routing()
        if kind == "explain":
            return self.fact() if self.specialist.coordinates and self.draw.random() < 0.5 else self.explanation()
        return self.parsing() if kind == "parse" else self.conversion(kind)

    def conversion(self, kind: str) -> Example:
        source, target = self.one_of(self.pairs)
        value = self.value(kind, source, target)
        text = _text(value, source)
        # HLXL is what a text is taken for unless it is named, or no HLXL.
        named = next(iter(readings(text)[0])) != source or self.draw.random() < 0.25
        prompt, phrasing = self.prompt("convert from" if named else "convert", text, source, target)
        return self.made(prompt, _text(value, target), value, kind, source, target, phrasing)

    def parsing(self) -> Example:
        source = self.one_of({name: share for name, share in self.specialist.own.items() if name != "hlxl"})
        value = self.value(self.draw.choice(self.value_kinds), source, "hlxl")
        text = _text(value, source)
        prompt, phrasing = self.prompt("parse", text, source, "", named=list(readings(text)[0]) != [source])
        return self.made(prompt, _text(value, "hlxl"), value, "parse", source, "hlxl", phrasing)

    def explanation(self) -> Example:
        source = self.one_of(self.specialist.own)
        value = self.value(self.draw.choice(self.value_kinds), source, "")
        text = _text(value, source)
        prompt, phrasing = self.prompt("explain", text, source, "", named=next(iter(readings(text)[0])) != source)
        return self.made(prompt, explain(value), value, "explain", source, "", phrasing)

    def fact(self) -> Example:
        about = self.draw.choice(list(FACTS))
        prompt, phrasing = self.prompt("fact", about, "", "")
        name = self.specialist.name
        return Example(prompt, FACTS[about], name, kind="explain", route=name, phrasing=phrasing)

    def routing(self) -> Example:
        other = _Generator(self.draw.choice(list(SPECIALISTS)), self.side, self.settings)
        other.draw = other.values.draw = other.values.words.draw = self.draw
        while (asked := other.example()).kind == "routing":
            pass
        prompt, phrasing = self.prompt("route", asked.prompt, "", "")
        name = self.specialist.name
        return Example(prompt, asked.route, name, kind="routing", route=name, shape=asked.shape, phrasing=phrasing)

    @property
    def value_kinds(self) -> list[str]:
        return [kind for kind in self.specialist.kinds if kind in VALUE_KINDS]

    def value(self, kind: str, source: str, target: str) -> Value:
        return self.values.value(kind, self.specialist.gpu, "lc-b" in (source, target))

    def prompt(self, task: str, text: str, source: str, target: str, named: bool = False) -> tuple[str, str]:
        while True:
            pattern = self.draw.choice(self.draw.choice(draws(task, self.side)))
            if not named or "{source}" in pattern:
                break
        names = {"text": text}
        for slot, notation in (("source", source), ("to", target)):
            if notation:
                names[slot] = self.draw.choice(ALIASES[notation])
        return pattern.format(**names), pattern

    def made(
        self, prompt: str, completion: str, value: Value, kind: str, source: str, target: str, phrasing: str
    ) -> Example:
        return Example(
            prompt, completion, self.specialist.name, _text(value, "hlxl"), kind=kind, source=source, target=target,
            route=self.specialist.name if self.specialist.gpu else route_of(source, target), shape=shape_of(value),
            phrasing=phrasing,
        )  # fmt: skip

    def one_of(self, shares: Mapping[_Choice, float]) -> _Choice:
        return self.draw.choices(list(shares), list(shares.values()))[0]


def route_of(source: str, target: str) -> str:
    """Returns the specialist for a task between two notations: whose one notation it is, else the coordinator."""
    others = {source, target} - {"hlxl", ""}
    return {frozenset({"lc-t"}): "ascii", frozenset({"lc-r"}): "runic"}.get(frozenset(others), "coordinator")


def _text(value: Value, notation: str) -> str:
    text = render(value, notation)
    assert isinstance(text, str)
    return text
