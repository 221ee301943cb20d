"""The structure of a value, apart from its numbers and words: what the two sides do not share."""

from __future__ import annotations

from ...notation import CONTRACT_NAMES, Contract, Handle, Value


def shape_of(value: Value) -> str:
    """Returns a value's structure.

    Alone, a number has its sign and its digits, a text the lengths of its words. Inside of arrays, objects and
    contracts only the kinds count, with their order and number, and the ids of the common contracts.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        sign = "-" if value < 0 else ""
        return f"{sign}{kind_of(value)}{'.'.join(str(len(part)) for part in str(abs(value)).split('.'))}"
    if isinstance(value, str):
        return f"string{'+'.join(str(len(word)) for word in value.split(' '))}"
    if isinstance(value, bytes):
        return f"bytes{len(value)}"
    if isinstance(value, Handle):
        return f"handle{len(value.name)}"
    return _inner(value)


def kind_of(value: Value) -> str:
    """Returns the kind of a value in one short word."""
    if value is None:
        return "null"
    kinds: dict[type, str] = {
        bool: "bool", int: "int", float: "float", str: "string", bytes: "bytes", Handle: "handle", list: "array",
        dict: "object", Contract: "contract",
    }  # fmt: skip
    return kinds[type(value)]


def _inner(value: Value) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_inner, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(map(_inner, value.values()))}}}"
    if isinstance(value, Contract):
        number = value.id if value.id in CONTRACT_NAMES else "other"
        return f"{number}({','.join(map(_inner, value.fields.values()))})"
    return kind_of(value)
