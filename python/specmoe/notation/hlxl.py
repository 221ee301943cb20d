"""HLXL, the readable notation: `{name: "moon", size: [1, 2]}`, `{14: {@0: 42}}`, `&h_ast`, `b"data"`."""

from __future__ import annotations

import re

from .parser import TextParser, readers
from .printer import TextPrinter
from .scanner import ESCAPED
from .values import Contract, Handle, Value

NAME = "HLXL"
_PREFIX = "&h_"
_PLAIN = re.compile(r"[ !#-\[\]-~]*")
_ESCAPE = re.compile(r'\\(?:["\\ntr]|x([0-9a-f]{2}))')
_SPECIAL = re.compile(rb'["\\\x00-\x1f\x7f-\xff]')
_ESCAPES = {char: escape for escape, char in ESCAPED.items()}


def parse(text: str) -> Value:
    """Returns the value of a text in HLXL.

    Raises:
        NotationError: with the place, what was expected there and what was found.
    """
    return Parser(text).whole()


def render(value: Value) -> str:
    """Returns a value's text in HLXL.

    Raises:
        NotationError: a value that has none: NaN, an infinity, another type, more than 64 levels.
    """
    return _Printer().value(value)


class Parser(TextParser):
    """Reads what differs from other notations."""

    __slots__ = ()
    name = NAME

    def prefixed_handle(self) -> Handle:
        if not self.text.startswith(_PREFIX, self.pos):
            raise self.error('a handle, which begins with "&h_"')
        self.pos += len(_PREFIX)
        return Handle(self.identifier("a handle's name"))

    def quoted_bytes(self) -> bytes:
        text, pos = self.text, self.pos + 2
        if text[pos - 1] != '"':
            raise self.error("a value")
        parts = []
        while True:
            stop = _PLAIN.match(text, pos).end()  # type: ignore[union-attr]
            parts.append(text[pos:stop])
            if text[stop] == '"':
                self.pos = stop + 1
                return "".join(parts).encode("latin-1")
            if text[stop] != "\\":
                raise self.error('a closing "' if stop >= self.end else "a printable ASCII character or \\xNN", stop)
            escape = _ESCAPE.match(text, stop)
            if escape is None:
                raise self.error('\\", \\\\, \\n, \\t, \\r or \\xNN', stop)
            parts.append(ESCAPED[escape[0]] if escape[1] is None else chr(int(escape[1], 16)))
            pos = escape.end()

    def braces(self) -> dict[str, Value] | Contract:
        self.enter()
        if not ("0" <= self.peek() <= "9"):
            return self.pairs()
        number = self.cardinal("a contract's id")
        self.expect(":")
        self.expect("{")
        fields: dict[int, Value] = {}
        if self.peek() != "}":
            while True:
                self.expect("@")
                self.field(fields, ":")
                if self.peek() == "}":
                    break
                if self.peek() != ",":
                    raise self.error('"," or "}"')
                self.pos += 1
        self.pos += 1
        self.expect("}")
        self.depth -= 1
        return Contract(number, fields)

    readers = readers(
        {"null": None, "true": True, "false": False},
        {"&": prefixed_handle, "b": quoted_bytes, "[": TextParser.array, "{": braces},
    )


class _Printer(TextPrinter):
    name = NAME
    comma, colon = ", ", ": "
    handle = _PREFIX

    def byte_string(self, value: bytes) -> str:
        text = value.decode("latin-1")
        if _SPECIAL.search(value):
            text = "".join(_ESCAPES.get(c) or (c if " " <= c <= "~" else f"\\x{ord(c):02x}") for c in text)
        return f'b"{text}"'

    def contract(self, value: Contract) -> str:
        fields = ", ".join([f"@{number}: {text}" for number, text in self.fields(value)])
        return f"{{{self.cardinal(value.id)}: {{{fields}}}}}"
