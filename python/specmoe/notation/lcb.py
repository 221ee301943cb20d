"""The text form of LC-B: `[{name:"moon",size:[0x01,0x02]}]`, `[14|0:0x2a]`, `[&ast]`, `[#64617461]`."""

from __future__ import annotations

import re

from .parser import TextParser, readers
from .printer import TextPrinter
from .values import Contract, Value

NAME = "LC-B"
_HEXADECIMAL = re.compile(r"0x([0-9a-f]+)")
_CONTRACT = re.compile(r"[ \t\r\n]*[0-9]+[ \t\r\n]*\|")


def parse(text: str) -> Value:
    """Returns the value of a text in LC-B's text form.

    Raises:
        NotationError: with the place, what was expected there and what was found.
    """
    return Parser(text).whole()


def render(value: Value) -> str:
    """Returns a value's text in LC-B's text form.

    Raises:
        NotationError: a value that has none: NaN, an infinity, another type, more than 64 levels.
    """
    # A contract has brackets of its own, which at the top are the outer ones.
    text = _Printer().value(value)
    return text if type(value) is Contract else f"[{text}]"


class Parser(TextParser):
    """Reads what differs from other notations."""

    __slots__ = ()
    name = NAME

    def top(self) -> Value:
        if self.peek() == "[" and _CONTRACT.match(self.text, self.pos + 1):
            return self.contract()
        self.expect("[")
        value = self.value()
        self.expect("]")
        return value

    def contract(self) -> Contract:
        self.enter()
        number = self.cardinal("a contract's id")
        self.expect("|")
        fields: dict[int, Value] = {}
        if self.peek() != "]":
            while True:
                self.field(fields, ":")
                if (char := self.peek()) == "]":
                    break
                if char != "|":
                    raise self.error('"|" or "]"')
                self.pos += 1
        self.leave()
        return Contract(number, fields)

    def brackets(self) -> list[Value] | Contract:
        return self.contract() if _CONTRACT.match(self.text, self.pos + 1) else self.array()

    def hexadecimal(self) -> int | float:
        start = self.pos
        match = _HEXADECIMAL.match(self.text, start)
        if match is None:
            number = self.number()
            if type(number) is int and self.text[start] != "-":
                raise self.error("an integer in hexadecimal, such as 0x2a", start)
            return number
        digits = match[1]
        following = self.text[match.end()]
        if following.isascii() and following.isalnum():
            raise self.error("lower-case hexadecimal digits", match.end())
        if len(digits) < 2 or len(digits) > 2 and digits[0] == "0":
            raise self.error("two hexadecimal digits, or as many as there have to be", start)
        self.pos = match.end()
        return int(digits, 16)

    readers = readers(
        {"_": None, "T": True, "F": False},
        {
            **dict.fromkeys("-0123456789", hexadecimal),
            "&": TextParser.handle,
            "#": TextParser.signed_bytes,
            "[": brackets,
            "{": TextParser.object,
        },
    )


class _Printer(TextPrinter):
    name = NAME
    null, true, false = "_", "T", "F"
    handle = "&"

    def integer(self, value: int) -> str:
        return f"0x{value:02x}" if value >= 0 else super().integer(value)

    def contract(self, value: Contract) -> str:
        fields = "|".join([f"{number}:{text}" for number, text in self.fields(value)])
        return f"[{self.cardinal(value.id)}|{fields}]"
