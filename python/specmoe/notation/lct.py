"""LC-T, the compact ASCII notation: `{name:"moon",size:[1,2]}`, `{C:14,0=42}`, `@ast`, `#64617461`."""

from __future__ import annotations

import re

from .parser import TextParser, readers
from .printer import TextPrinter
from .values import Contract, Value

NAME = "LC-T"
_CONTRACT = re.compile(r"C[ \t\r\n]*:")


def parse(text: str) -> Value:
    """Returns the value of a text in LC-T.

    Raises:
        NotationError: with the place, what was expected there and what was found.
    """
    return Parser(text).whole()


def render(value: Value) -> str:
    """Returns a value's text in LC-T.

    Raises:
        NotationError: a value that has none: NaN, an infinity, another type, more than 64 levels.
    """
    return _Printer().value(value)


class Parser(TextParser):
    """Reads what differs from other notations."""

    __slots__ = ()
    name = NAME

    def braces(self) -> dict[str, Value] | Contract:
        self.enter()
        self.peek()
        mark = _CONTRACT.match(self.text, self.pos)
        if mark is None:
            return self.pairs()
        self.pos = mark.end()
        number = self.cardinal("a contract's id")
        fields: dict[int, Value] = {}
        while (char := self.peek()) != "}":
            if char != ",":
                raise self.error('"," or "}"')
            self.pos += 1
            self.field(fields, "=")
        self.leave()
        return Contract(number, fields)

    def key(self) -> str:
        start = self.pos
        key = super().key()
        if key == "C" and self.text[start] == "C":
            raise self.error('a key; this one is written "C", since C alone begins a contract', start)
        return key

    readers = readers(
        {"NULL": None, "TRUE": True, "FALSE": False},
        {"@": TextParser.handle, "#": TextParser.signed_bytes, "[": TextParser.array, "{": braces},
    )


class _Printer(TextPrinter):
    name = NAME
    null, true, false = "NULL", "TRUE", "FALSE"
    quoted = frozenset({"C"})

    def contract(self, value: Contract) -> str:
        fields = "".join([f",{number}={text}" for number, text in self.fields(value)])
        return f"{{C:{self.cardinal(value.id)}{fields}}}"
