"""The one data model of all notations.

A value is None, a bool, an int, a float, a str, bytes, a `Handle`, a list, a dict with str keys, or a `Contract`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias, Union

# The most lists, dicts and contracts that lie in each other.
MAX_DEPTH = 64

IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

CONTRACT_NAMES: dict[int, str] = {
    14: "integer",
    15: "float",
    16: "text",
    20: "handle",
    21: "null",
    22: "boolean",
    100: "block",
    101: "binary operation",
    102: "variable",
    103: "assignment",
    104: "function",
    105: "call",
    106: "if",
    107: "while",
    900: "shader",
    901: "kernel",
    902: "pipeline",
    1000: "operation",
}


@dataclass(frozen=True, slots=True)
class Handle:
    """A reference by name.

    Args:
        name: letters, digits and underscores of ASCII, a letter first.

    Raises:
        ValueError: another name.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not IDENTIFIER.fullmatch(self.name):
            raise ValueError(f"Handle: name: expected letters, digits and _, a letter first; got {self.name!r}")


@dataclass(slots=True)
class Contract:
    """A value with a numbered meaning.

    Args:
        id: what it means, `CONTRACT_NAMES` has the common ones; 0 or more.
        fields: its values by number, 0 or more. Their order has no meaning.

    Raises:
        ValueError: an id or a number that is no int, or negative.
    """

    id: int
    fields: dict[int, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in (self.id, *self.fields):
            if type(number) is not int or number < 0:
                raise ValueError(f"Contract: expected an id and field numbers of 0 or more, got {number!r}")


Value: TypeAlias = Union[None, bool, int, float, str, bytes, Handle, "list[Value]", "dict[str, Value]", Contract]
