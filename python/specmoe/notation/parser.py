"""What the text notations have in common when they are read; each adds its own values by their first character."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .scanner import Scanner
from .values import Handle, Value

Reader = Callable[[Any], Any]
_DIGITS = "-0123456789"
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")


class TextParser(Scanner):
    """Reads one value by recursive descent, at most `MAX_DEPTH` brackets deep.

    Attributes:
        name: the notation's name.
        readers: what reads a value, by the value's first character.
    """

    __slots__ = ()
    name: ClassVar[str]
    readers: ClassVar[Mapping[str, Reader]]

    def __init__(self, text: str) -> None:
        super().__init__(text, self.name)

    def whole(self) -> Value:
        """Reads a whole text: nothing but spaces may follow."""
        value = self.top()
        self.finish()
        return value

    def top(self) -> Value:
        """Reads a value as it stands alone, and goes behind it."""
        return self.value()

    def value(self) -> Value:
        """Reads a value, and spaces before it."""
        char = self.text[self.pos]
        reader = self.readers.get(char)
        if reader is None:
            reader = self.readers.get(self.peek())
            if reader is None:
                raise self.error("a value")
        return reader(self)

    def handle(self) -> Handle:
        """Reads a name after a sign of one character."""
        self.pos += 1
        return Handle(self.identifier("a handle's name"))

    def signed_bytes(self) -> bytes:
        """Reads bytes in hexadecimal after a sign of one character."""
        self.pos += 1
        return self.hex_bytes()

    def array(self, close: str = "]") -> list[Value]:
        """Reads items from the opening bracket on; `close` has the characters that may end them."""
        self.enter()
        items: list[Value] = []
        if self.peek() not in close:
            items.append(self.value())
            while self.another(close):
                items.append(self.value())
        self.leave()
        return items

    def another(self, close: str) -> bool:
        """Goes past a comma and returns True, or stays at what closes and returns False."""
        match = _COMMA.match(self.text, self.pos)
        if match is not None:
            self.pos = match.end()
            return True
        if self.peek() in close:
            return False
        raise self.error(f'"," or "{close[0]}"')

    def object(self, close: str = "}") -> dict[str, Value]:
        """Reads keys and values from the opening bracket on."""
        self.enter()
        return self.pairs(close)

    def pairs(self, close: str = "}") -> dict[str, Value]:
        """Reads keys and values from behind the opening bracket on."""
        found: dict[str, Value] = {}
        if self.peek() not in close:
            self.pair(found)
            while self.another(close):
                self.pair(found)
        self.leave()
        return found

    def pair(self, found: dict[str, Value]) -> None:
        """Reads a key and its value."""
        self.peek()
        start = self.pos
        key = self.key()
        if key in found:
            raise self.error("a key that is not there yet", start)
        self.expect(":")
        found[key] = self.value()

    def key(self) -> str:
        """Reads a key: a name, or any string in quotes."""
        if self.text[self.pos] == '"':
            return self.string()
        return self.identifier("a key")

    def field(self, fields: dict[int, Value], sign: str) -> None:
        """Reads a field's number, the sign behind it, and its value."""
        self.peek()
        start = self.pos
        number = self.cardinal("a field's number")
        if number in fields:
            raise self.error("a field that is not there yet", start)
        self.expect(sign)
        fields[number] = self.value()

    def leave(self) -> None:
        """Goes past a closing bracket."""
        self.depth -= 1
        self.pos += 1


def word(text: str, value: Value) -> Reader:
    """Returns what reads a fixed word."""

    def read(parser: TextParser) -> Value:
        end = parser.pos + len(text)
        following = parser.text[end : end + 1]
        if not parser.text.startswith(text, parser.pos) or text.isalpha() and _continues(following):
            raise parser.error("a value")
        parser.pos = end
        return value

    return read


def readers(words: Mapping[str, Value], others: Mapping[str, Reader]) -> dict[str, Reader]:
    """Returns a notation's readers: fixed words, numbers, strings, and what the notation reads itself."""
    found: dict[str, Reader] = {text[0]: word(text, value) for text, value in words.items()}
    found.update(dict.fromkeys(_DIGITS, Scanner.number))
    found['"'] = Scanner.string
    found.update(others)
    return found


def _continues(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_")
