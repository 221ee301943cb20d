"""What a notation says of text or of a value that it cannot take."""

from __future__ import annotations


class NotationError(ValueError):
    """A text is not of its notation, or a value has none.

    Attributes:
        notation: the notation's name, "" where none was recognized.
        expected: what would have been right.
        found: what was there.
        offset: characters, in the byte form bytes, before the place; None where a value and not a text is wrong.
        line, column: the same place counted from 1; None in the byte form and for a value.
    """

    def __init__(
        self,
        notation: str,
        expected: str,
        found: str,
        offset: int | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        self.notation, self.expected, self.found = notation, expected, found
        self.offset, self.line, self.column = offset, line, column
        if line is not None:
            place = f"line {line}, column {column}: "
        else:
            place = "value: " if offset is None else f"byte {offset}: "
        super().__init__(f"{notation}: {place}expected {expected}, found {found}")


class UnknownNotationError(LookupError, ValueError):
    """No notation has this name."""


class AmbiguousNotationError(ValueError):
    """A text means different values in different notations."""
