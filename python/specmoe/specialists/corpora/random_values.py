"""Values of each kind of task."""

from __future__ import annotations

import random

from ...notation import CONTRACT_NAMES, Contract, Handle, Value, render
from .settings import CorpusSettings
from .shapes import shape_of
from .sides import side_of_shape
from .words import Words

VALUE_KINDS = ("primitives", "arrays", "objects", "contracts", "nested", "handles")
GPU_IDS = (900, 901, 902)
_COMMON_IDS = tuple(number for number in CONTRACT_NAMES if number not in GPU_IDS)
_TRIES = 400


class RandomValues:
    """Draws values of one side.

    Args:
        draw: where chance comes from.
        side: "train" or "test"; only structures of this side are drawn.
        settings: the sizes.
    """

    def __init__(self, draw: random.Random, side: str, settings: CorpusSettings) -> None:
        self.draw, self.side, self.settings = draw, side, settings
        self.words = Words(draw, side, settings)
        # Set while a value is drawn for LC-B.
        self.largest: int | None = None

    def value(self, kind: str, gpu: bool = False, byte_form: bool = False) -> Value:
        """Returns a value.

        Args:
            kind: one of `VALUE_KINDS`.
            gpu: a contract of `GPU_IDS`, in other kinds as a part.
            byte_form: integers of 0 or more are at most `byte_form_integer`.
        """
        self.largest = self.settings.byte_form_integer if byte_form else None
        for _ in range(_TRIES):
            value = self._gpu_value(kind) if gpu else self._value(kind)
            fits = len(str(render(value, "hlxl"))) <= self.settings.text_length
            if fits and side_of_shape(shape_of(value)) == self.side:
                return value
        raise ValueError(f"corpus: expected sizes that allow {kind} on the {self.side} side, got {self.settings}")

    def integer(self) -> int:
        """Returns an integer with any number of digits, one in four below 0."""
        if self.draw.random() < 0.25:
            return -self._positive(self.settings.digits)
        return self.draw.randint(0, self.largest) if self.largest is not None else self._positive(self.settings.digits)

    def primitive(self) -> Value:
        """Returns a value without parts."""
        chance = self.draw.random()
        if chance < 0.38:
            return self.integer()
        if chance < 0.5:
            whole, part = self.settings.float_digits
            number = f"{self._positive(whole)}.{self.draw.randint(0, 10 ** self.draw.randint(1, part) - 1)}"
            return float(number) * (-1 if self.draw.random() < 0.25 else 1) + 0.0
        if chance < 0.75:
            return self.words.phrase()
        if chance < 0.85:
            return self.draw.choice((None, True, False))
        return self.handle() if chance < 0.93 else self.letters()

    def handle(self) -> Handle:
        """Returns a handle."""
        return Handle(self.words.name())

    def letters(self) -> bytes:
        """Returns lower-case letters as bytes."""
        return self.words.word()[: self.draw.randint(1, self.settings.bytes_length)].encode()

    def array(self) -> list[Value]:
        """Returns an array, most often of one kind."""
        length = self.draw.randint(0, self.settings.array_length)
        chance = self.draw.random()
        if chance < 0.45:
            return [self.integer() for _ in range(length)]
        if chance < 0.65:
            return [self.words.word() for _ in range(length)]
        return [self.primitive() for _ in range(length)]

    def object(self) -> dict[str, Value]:
        """Returns an object."""
        return {self.words.name(): self.primitive() for _ in range(self.draw.randint(0, self.settings.object_fields))}

    def contract(self) -> Contract:
        """Returns a contract, seldom one with an id that is none of the common ones."""
        number = self.draw.choice(_COMMON_IDS) if self.draw.random() < 0.85 else self._positive(self.settings.digits)
        if number in GPU_IDS:
            number += 3
        count = self.draw.randint(0, self.settings.contract_fields)
        return Contract(number, {place: self.primitive() for place in range(count)})

    def _value(self, kind: str) -> Value:
        if kind == "primitives":
            return self.primitive()
        if kind == "arrays":
            return self.array()
        if kind == "objects":
            return self.object()
        if kind == "contracts":
            return self.contract()
        return self._with_handles() if kind == "handles" else self._nested()

    def _with_handles(self) -> Value:
        chance = self.draw.random()
        if chance < 0.5:
            return self.handle()
        if chance < 0.75:
            return [self.handle() for _ in range(self.draw.randint(1, self.settings.array_length))]
        count = self.draw.randint(1, self.settings.contract_fields)
        parts: list[Value] = [self.words.phrase(), *(self.handle() for _ in range(count - 1))]
        return Contract(1000, dict(enumerate(parts))) if chance < 0.9 else {self.words.name(): self.handle()}

    def _nested(self) -> Value:
        while True:
            value = self._container(self.settings.depth)
            if any(isinstance(part, list | dict | Contract) for part in _parts(value)):
                return value

    def _container(self, depth: int) -> Value:
        count = self.draw.randint(1, 3)
        parts = [
            self._container(depth - 1) if depth > 1 and self.draw.random() < 0.4 else self.primitive()
            for _ in range(count)
        ]
        chance = self.draw.random()
        if chance < 0.4:
            return parts
        if chance < 0.7:
            return {self.words.name(): part for part in parts}
        return Contract(self.draw.choice(_COMMON_IDS), dict(enumerate(parts)))

    def _gpu_value(self, kind: str) -> Value:
        stage = self.draw.choice(("vertex", "fragment", "compute", "tile"))
        name = self.words.word()
        sizes: list[Value] = [self._positive(3) for _ in range(self.draw.randint(1, 3))]
        shader: list[Value] = [stage, self.handle(), name]
        kernel: list[Value] = [name, sizes, self.handle()]
        pipeline: list[Value] = [name, self.handle(), self.handle()]
        place = self.draw.randrange(len(GPU_IDS))
        fields = (shader, kernel, pipeline)[place][: self.draw.randint(1, 3)]
        if self.draw.random() < 0.3:
            fields = [self.primitive() for _ in range(self.draw.randint(0, self.settings.contract_fields))]
        contract = Contract(GPU_IDS[place], dict(enumerate(fields)))
        if kind != "nested":
            return contract
        chance = self.draw.random()
        if chance < 0.4:
            return [contract, self.primitive()] if chance < 0.2 else [contract]
        return {self.words.name(): contract} if chance < 0.7 else Contract(100, {0: contract})

    def _positive(self, digits: int) -> int:
        """Returns an integer of 0 or more with any number of digits, each as likely."""
        count = self.draw.randint(1, digits)
        return self.draw.randint(0 if count == 1 else 10 ** (count - 1), 10**count - 1)


def _parts(value: Value) -> list[Value]:
    if isinstance(value, Contract):
        return list(value.fields.values())
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
