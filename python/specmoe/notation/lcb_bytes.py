"""The byte form of LC-B. Equal values have equal bytes: it is the canonical form.

Tags: 00 null, 01 integer, 02 float, 03 text, 04 bytes, 05 and 06 array, 07 and 08 object, 09 handle, 0A true, 0B false.
For contracts, which have none elsewhere, 0C and 0D: the id, the number of fields, each field's number and value.
"""

from __future__ import annotations

import math
import struct

from .errors import NotationError
from .leb128 import SIGNED, UNSIGNED, read_signed, read_unsigned, signed, unsigned
from .values import IDENTIFIER, MAX_DEPTH, Contract, Handle, Value

NAME = "LC-B bytes"
_NULL, _INTEGER, _FLOAT, _TEXT, _BYTES, _ARRAY, _ARRAY_END, _OBJECT, _OBJECT_END = range(9)
_HANDLE, _TRUE, _FALSE, _CONTRACT, _CONTRACT_END = range(9, 14)
_DOUBLE = struct.Struct(">d")


def parse(data: bytes) -> Value:
    """Returns the value of a text in LC-B's byte form.

    Only what `render` writes is taken: numbers as short as can be, keys and fields in order; -0.0 becomes 0.0.

    Raises:
        NotationError: with the offset, what was expected there and what was found.
    """
    reader = _Reader(bytes(data))
    value = reader.value()
    if reader.pos != len(reader.data):
        raise reader.error("the end")
    return value


def render(value: Value) -> bytes:
    """Returns a value's bytes: keys in the order of their UTF-8, fields in the order of their numbers.

    Raises:
        NotationError: a value that has none: NaN, an infinity, another type, more than 64 levels.
    """
    out = bytearray()
    _write(out, value, 0)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.pos, self.depth = data, 0, 0

    def error(self, expected: str, pos: int | None = None) -> NotationError:
        pos = self.pos if pos is None else pos
        found = f"0x{self.data[pos]:02x}" if pos < len(self.data) else "the end"
        return NotationError(NAME, expected, found, pos)

    def value(self) -> Value:
        start = self.pos
        if start >= len(self.data):
            raise self.error("a value's tag")
        tag = self.data[start]
        self.pos += 1
        if tag == _INTEGER:
            return self.number(True)
        if tag == _TEXT:
            return self.text()
        if tag == _FLOAT:
            (real,) = _DOUBLE.unpack(self.take(8))
            if not math.isfinite(real):
                raise self.error("a finite float", start + 1)
            return real + 0.0
        if tag == _ARRAY:
            count = self.count(start)
            items = [self.value() for _ in range(count)]
            self.close(_ARRAY_END, "06, the array's end")
            return items
        if tag == _OBJECT:
            return self.object(start)
        if tag == _CONTRACT:
            return self.contract(start)
        if tag == _HANDLE:
            name = self.text()
            if not IDENTIFIER.fullmatch(name):
                raise self.error("a handle's name", start + 1)
            return Handle(name)
        if tag == _BYTES:
            return self.take(self.number())
        if tag == _NULL:
            return None
        if tag == _TRUE or tag == _FALSE:
            return tag == _TRUE
        raise self.error("a value's tag", start)

    def object(self, start: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        last = None
        for _ in range(self.count(start)):
            place = self.pos
            key = self.text()
            # Code points sort as their UTF-8 does.
            if last is not None and key <= last:
                raise self.error("a key that comes after the one before it", place)
            found[key] = self.value()
            last = key
        self.close(_OBJECT_END, "08, the object's end")
        return found

    def contract(self, start: int) -> Contract:
        number = self.number()
        fields: dict[int, Value] = {}
        last = -1
        for _ in range(self.count(start)):
            place = self.pos
            field = self.number()
            if field <= last:
                raise self.error("a field that comes after the one before it", place)
            fields[field] = self.value()
            last = field
        self.close(_CONTRACT_END, "0d, the contract's end")
        return Contract(number, fields)

    def count(self, start: int) -> int:
        """Reads the count behind an opening tag and goes one level deeper."""
        if self.depth == MAX_DEPTH:
            raise self.error(f"at most {MAX_DEPTH} levels", start)
        self.depth += 1
        place = self.pos
        count = self.number()
        # An item has a byte at least.
        if count > len(self.data) - self.pos:
            raise self.error(f"a count of at most the {len(self.data) - self.pos} bytes that follow", place)
        return count

    def close(self, tag: int, expected: str) -> None:
        if self.pos >= len(self.data) or self.data[self.pos] != tag:
            raise self.error(expected)
        self.pos += 1
        self.depth -= 1

    def number(self, with_sign: bool = False) -> int:
        if self.pos < len(self.data) and (byte := self.data[self.pos]) < 0x80:
            self.pos += 1
            return byte - 2 * (byte & 0x40) if with_sign else byte
        match = (SIGNED if with_sign else UNSIGNED).match(self.data, self.pos)
        if match is None:
            raise self.error("an integer in LEB128 of the least length")
        self.pos = match.end()
        return (read_signed if with_sign else read_unsigned)(match[0])

    def take(self, count: int) -> bytes:
        stop = self.pos + count
        if stop > len(self.data):
            raise self.error(f"{count if count < 1 << 64 else 'far more'} bytes, with {len(self.data) - self.pos} left")
        taken = self.data[self.pos : stop]
        self.pos = stop
        return taken

    def text(self) -> str:
        taken = self.take(self.number())
        try:
            return taken.decode()
        except UnicodeDecodeError as error:
            raise self.error("UTF-8", self.pos - len(taken) + error.start) from None


def _write(out: bytearray, value: Value, depth: int) -> None:
    kind = type(value)
    if isinstance(value, bool):
        out.append(_TRUE if value else _FALSE)
    elif value is None:
        out.append(_NULL)
    elif kind is int:
        out.append(_INTEGER)
        out += signed(value)  # type: ignore[arg-type]
    elif kind is str:
        out.append(_TEXT)
        _write_text(out, value)  # type: ignore[arg-type]
    elif kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise NotationError(NAME, "a finite float", repr(value))
        out.append(_FLOAT)
        out += _DOUBLE.pack(value + 0.0)  # type: ignore[operator]
    elif kind is bytes:
        out.append(_BYTES)
        out += unsigned(len(value)) + value  # type: ignore[arg-type, operator]
    elif isinstance(value, Handle):
        out.append(_HANDLE)
        _write_text(out, value.name)
    elif kind in (list, dict, Contract):
        if depth == MAX_DEPTH:
            raise NotationError(NAME, f"at most {MAX_DEPTH} levels", "one more")
        _write_container(out, value, depth + 1)
    else:
        expected = "None, bool, int, float, str, bytes, Handle, list, dict or Contract"
        raise NotationError(NAME, expected, kind.__name__)


def _write_container(out: bytearray, value: Value, depth: int) -> None:
    if isinstance(value, list):
        out.append(_ARRAY)
        out += unsigned(len(value))
        for item in value:
            _write(out, item, depth)
        out.append(_ARRAY_END)
    elif isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise NotationError(NAME, "keys that are strings", repr(key))
        out.append(_OBJECT)
        out += unsigned(len(value))
        for key in sorted(value):
            _write_text(out, key)
            _write(out, value[key], depth)
        out.append(_OBJECT_END)
    elif isinstance(value, Contract):
        for number in (value.id, *value.fields):
            if type(number) is not int or number < 0:
                raise NotationError(NAME, "ids and field numbers of 0 or more", repr(number))
        out.append(_CONTRACT)
        out += unsigned(value.id) + unsigned(len(value.fields))
        for number in sorted(value.fields):
            out += unsigned(number)
            _write(out, value.fields[number], depth)
        out.append(_CONTRACT_END)


def _write_text(out: bytearray, text: str) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        found = f"half of a surrogate pair, U+{ord(text[error.start]):04X}"
        raise NotationError(NAME, "strings of Unicode characters", found) from None
    out += unsigned(len(data))
    out += data
