"""Decimal integers of any length.

Python refuses to convert more digits at once than a limit, which its users can lower to 640. Longer numbers go in
halves.
"""

from __future__ import annotations

_DIGITS = 512
_BITS = 1700  # fewer than 512 digits


def from_decimal(text: str) -> int:
    """Returns the number that an optional minus sign and digits mean."""
    if len(text) <= _DIGITS:
        return int(text)
    if text[0] == "-":
        return -from_decimal(text[1:])
    low = _DIGITS
    while 2 * low < len(text):
        low *= 2
    return from_decimal(text[:-low]) * 10**low + from_decimal(text[-low:])


def to_decimal(number: int) -> str:
    """Returns a number's digits, with a minus sign before them where it is negative."""
    if number.bit_length() < _BITS:
        return str(number)
    if number < 0:
        return f"-{to_decimal(-number)}"
    powers = [(10**_DIGITS, _DIGITS)]
    while powers[-1][0] ** 2 <= number:
        powers.append((powers[-1][0] ** 2, 2 * powers[-1][1]))
    return _digits(number, powers).lstrip("0")


def _digits(number: int, powers: list[tuple[int, int]]) -> str:
    """Returns the digits of a number below the square of the last power, with zeros before them."""
    if not powers:
        return str(number).zfill(_DIGITS)
    power, _ = powers[-1]
    high, low = divmod(number, power)
    return _digits(high, powers[:-1]) + _digits(low, powers[:-1])
