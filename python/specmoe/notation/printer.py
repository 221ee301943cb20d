"""What the text notations have in common when they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from .errors import NotationError
from .integers import to_decimal
from .scanner import ESCAPED
from .values import IDENTIFIER, MAX_DEPTH, Contract, Handle, Value

_SPECIAL = re.compile(r'["\\\x00-\x1f\x7f\ud800-\udfff]')
_ESCAPES = {char: escape for escape, char in ESCAPED.items()}


class TextPrinter:
    """Writes one value. The attributes are what differs between notations, the methods may be replaced.

    Attributes:
        name: the notation's name.
        null, true, false: the words for these.
        array, object: opening and closing brackets.
        comma, colon: what separates items, and a key from its value.
        handle, bytes_sign: what stands before a name and before bytes in hexadecimal.
        quoted: keys that are written in quotes although they are names.
    """

    name: str
    null, true, false = "null", "true", "false"
    array = "[", "]"
    object = "{", "}"
    comma, colon = ",", ":"
    handle = "@"
    bytes_sign = "#"
    quoted: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.depth = 0

    def value(self, value: Value) -> str:
        """Returns a value's text."""
        writer = _WRITERS.get(type(value))
        if writer is None:
            raise self.error("None, bool, int, float, str, bytes, Handle, list, dict or Contract", type(value).__name__)
        return writer(self, value)

    def error(self, expected: str, found: str) -> NotationError:
        """Returns the error for a value."""
        return NotationError(self.name, expected, found)

    def integer(self, value: int) -> str:
        """Returns an integer's digits."""
        return to_decimal(value)

    def real(self, value: float) -> str:
        """Returns the shortest text that is this float, always with a point or an exponent."""
        if not math.isfinite(value):
            raise self.error("a finite float", repr(value))
        return repr(value + 0.0)  # -0.0 becomes 0.0

    def string(self, value: str) -> str:
        """Returns a string in quotes."""
        return f'"{_SPECIAL.sub(self._escape, value)}"' if _SPECIAL.search(value) else f'"{value}"'

    def byte_string(self, value: bytes) -> str:
        """Returns bytes in hexadecimal behind their sign."""
        return self.bytes_sign + value.hex()

    def items(self, value: list[Value]) -> str:
        """Returns an array's text."""
        self.enter()
        text = self.comma.join([self.value(item) for item in value])
        self.depth -= 1
        return f"{self.array[0]}{text}{self.array[1]}"

    def pairs(self, value: dict[str, Value]) -> str:
        """Returns an object's text; the keys keep their order."""
        self.enter()
        text = self.comma.join([f"{self.key(key)}{self.colon}{self.value(item)}" for key, item in value.items()])
        self.depth -= 1
        return f"{self.object[0]}{text}{self.object[1]}"

    def key(self, key: str) -> str:
        """Returns a key: as it is where it is a name, else in quotes."""
        if type(key) is not str:
            raise self.error("keys that are strings", repr(key))
        return key if IDENTIFIER.fullmatch(key) and key not in self.quoted else self.string(key)

    def contract(self, value: Contract) -> str:
        """Returns a contract's text; each notation has a way of its own and overrides this."""
        raise NotImplementedError

    def fields(self, value: Contract) -> list[tuple[str, str]]:
        """Returns the numbers and texts of a contract's fields, in their order."""
        self.enter()
        texts = [(self.cardinal(number), self.value(item)) for number, item in value.fields.items()]
        self.depth -= 1
        return texts

    def cardinal(self, number: int) -> str:
        """Returns the digits of a contract's id or of a field's number."""
        if type(number) is not int or number < 0:
            raise self.error("ids and field numbers of 0 or more", repr(number))
        return to_decimal(number)

    def enter(self) -> None:
        """Goes one level deeper."""
        if self.depth == MAX_DEPTH:
            raise self.error(f"at most {MAX_DEPTH} levels", "one more")
        self.depth += 1

    def _escape(self, match: re.Match[str]) -> str:
        char = match[0]
        if char >= "\ud800":
            raise self.error("strings of Unicode characters", f"half of a surrogate pair, U+{ord(char):04X}")
        return _ESCAPES.get(char) or f"\\u{{{ord(char):x}}}"


_WRITERS: dict[type, Callable[[TextPrinter, Any], str]] = {
    type(None): lambda printer, value: printer.null,
    bool: lambda printer, value: printer.true if value else printer.false,
    int: lambda printer, value: printer.integer(value),
    float: lambda printer, value: printer.real(value),
    str: lambda printer, value: printer.string(value),
    bytes: lambda printer, value: printer.byte_string(value),
    Handle: lambda printer, value: printer.handle + value.name,
    list: lambda printer, value: printer.items(value),
    dict: lambda printer, value: printer.pairs(value),
    Contract: lambda printer, value: printer.contract(value),
}
