"""Integers in LEB128, of any size and in linear time: seven bits a byte, the lowest first, all but the last marked."""

from __future__ import annotations

import re

# The shortest forms only: the last byte is needed.
UNSIGNED = re.compile(rb"[\x80-\xff]*[\x01-\x7f]|\x00", re.DOTALL)
SIGNED = re.compile(rb"[\x00-\x7f]|[\x80-\xff]*(?:[\x80-\xff][\x01-\x7e]|[\xc0-\xff]\x00|[\x80-\xbf]\x7f)", re.DOTALL)
# What is short enough for a loop of shifts.
_FEW = 10


def unsigned(number: int) -> bytes:
    """Returns a number of 0 or more in unsigned LEB128."""
    if number < 0x80:
        return bytes((number,))
    return _groups(number, -(-number.bit_length() // 7))


def signed(number: int) -> bytes:
    """Returns a number in signed LEB128, two's complement."""
    if -0x40 <= number < 0x40:
        return bytes((number & 0x7F,))
    count = (number if number >= 0 else ~number).bit_length() // 7 + 1
    return _groups(number & ((1 << 7 * count) - 1), count)


def read_unsigned(data: bytes) -> int:
    """Returns the number that all of these bytes are."""
    if len(data) == 1:
        return data[0]
    if len(data) <= _FEW:
        number = 0
        for place, byte in enumerate(data):
            number |= (byte & 0x7F) << 7 * place
        return number
    return int("".join([f"{byte & 0x7F:07b}" for byte in reversed(data)]), 2)


def read_signed(data: bytes) -> int:
    """Returns the number that all of these bytes are in two's complement."""
    number = read_unsigned(data)
    return number - (1 << 7 * len(data)) if data[-1] & 0x40 else number


def _groups(number: int, count: int) -> bytes:
    if count <= _FEW:
        groups = [number >> 7 * place & 0x7F | 0x80 for place in range(count)]
    else:
        bits = f"{number:0{7 * count}b}"
        groups = [int(bits[place : place + 7], 2) | 0x80 for place in range(7 * (count - 1), -1, -7)]
    groups[-1] &= 0x7F
    return bytes(groups)
