"""A text, a place in it, and the tokens that all text notations share."""

from __future__ import annotations

import math
import re

from .errors import NotationError
from .integers import from_decimal
from .values import IDENTIFIER, MAX_DEPTH

# Stands after the text, so that looking at the next character needs no check. No token may hold it.
END = "\0"

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)((?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_CARDINAL = re.compile(r"0|[1-9][0-9]*")
# What stands in a string as it is: no quote, backslash, control character or half of a surrogate pair.
_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]*')
_ESCAPE = re.compile(r'\\(?:["\\ntr]|u\{([0-9a-fA-F]{1,6})\})')
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_WORD = re.compile(r"[A-Za-z0-9_]{1,24}")

ESCAPED = {'\\"': '"', "\\\\": "\\", "\\n": "\n", "\\t": "\t", "\\r": "\r"}


class Scanner:
    """Reads tokens; each error has its place, what was expected there and what was found.

    Args:
        text: the whole text.
        notation: the notation's name for errors.
    """

    __slots__ = ("notation", "text", "end", "pos", "depth")

    def __init__(self, text: str, notation: str) -> None:
        self.notation = notation
        self.text = text + END
        self.end = len(text)
        self.pos = 0
        self.depth = 0

    def error(self, expected: str, pos: int | None = None) -> NotationError:
        """Returns the error for a place, by default the present one."""
        pos = self.pos if pos is None else pos
        word = _WORD.match(self.text, pos)
        found = "the end" if pos >= self.end else f'"{word[0]}"' if word else _shown(self.text[pos])
        line = self.text.count("\n", 0, pos) + 1
        column = pos - self.text.rfind("\n", 0, pos)
        return NotationError(self.notation, expected, found, pos, line, column)

    def peek(self) -> str:
        """Returns the next character that is no space, `END` after the last one, and goes there."""
        char = self.text[self.pos]
        if char <= " ":
            self.pos = _SPACE.match(self.text, self.pos).end()  # type: ignore[union-attr]
            char = self.text[self.pos]
        return char

    def expect(self, char: str) -> None:
        """Goes past a character, and spaces before it."""
        if self.peek() != char:
            raise self.error(f'"{char}"')
        self.pos += 1

    def enter(self) -> None:
        """Goes past an opening bracket."""
        if self.depth == MAX_DEPTH:
            raise self.error(f"at most {MAX_DEPTH} levels")
        self.depth += 1
        self.pos += 1

    def finish(self) -> None:
        """Nothing but spaces may follow."""
        self.peek()
        if self.pos != self.end:
            raise self.error("the end")

    def number(self) -> int | float:
        """Reads an integer, or a float: a number with a point or an exponent."""
        match = _NUMBER.match(self.text, self.pos)
        if match is None:
            raise self.error("digits", self.pos + 1)  # only a minus sign can stand here
        token, part = match.group(0, 1)
        if part:
            real = float(token)
            if math.isinf(real):
                raise self.error("a float in the range of 64 bits")
            self.pos = match.end()
            return real + 0.0  # -0.0 becomes 0.0
        self.pos = match.end()
        if self.text[self.pos] in "0123456789":
            self.pos = match.start()
            raise self.error("a number without leading zeros")
        return int(token) if len(token) < 512 else from_decimal(token)

    def cardinal(self, what: str) -> int:
        """Reads an integer of 0 or more."""
        self.peek()
        match = _CARDINAL.match(self.text, self.pos)
        if match is None:
            raise self.error(what)
        self._no_digit_at(match.end())
        self.pos = match.end()
        return from_decimal(match[0])

    def string(self) -> str:
        """Reads a string from its opening quote on."""
        text, pos = self.text, self.pos + 1
        stop = _PLAIN.match(text, pos).end()  # type: ignore[union-attr]
        if text[stop] == '"':
            self.pos = stop + 1
            return text[pos:stop]
        parts = [text[pos:stop]]
        while text[stop] != '"':
            if text[stop] != "\\":
                raise self.error('a closing "' if stop >= self.end else "an escape for a control character", stop)
            escape = _ESCAPE.match(text, stop)
            if escape is None:
                raise self.error('\\", \\\\, \\n, \\t, \\r or \\u{...}', stop)
            if escape[1] is not None:
                code = int(escape[1], 16)
                if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                    raise self.error("a Unicode character", stop)
                parts.append(chr(code))
            else:
                parts.append(ESCAPED[escape[0]])
            pos = escape.end()
            stop = _PLAIN.match(text, pos).end()  # type: ignore[union-attr]
            parts.append(text[pos:stop])
        self.pos = stop + 1
        return "".join(parts)

    def identifier(self, what: str) -> str:
        """Reads a name."""
        match = IDENTIFIER.match(self.text, self.pos)
        if match is None:
            raise self.error(what)
        self.pos = match.end()
        return match[0]

    def hex_bytes(self) -> bytes:
        """Reads pairs of lower-case hexadecimal digits, as many as there are."""
        match = _HEX.match(self.text, self.pos)
        assert match is not None
        if self.text[match.end()] in "0123456789abcdefABCDEF":
            raise self.error("pairs of lower-case hexadecimal digits", match.end())
        self.pos = match.end()
        return bytes.fromhex(match[0])

    def _no_digit_at(self, pos: int) -> None:
        if self.text[pos] in "0123456789":
            raise self.error("a number without leading zeros")


def _shown(char: str) -> str:
    return f'"{char}"' if char.isprintable() else f"U+{ord(char):04X}"
