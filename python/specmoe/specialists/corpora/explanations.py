"""Short sentences about values, notations, contracts and specialists."""

from __future__ import annotations

from ...notation import CONTRACT_NAMES, Contract, Handle, Value
from .shapes import kind_of

_NAMES = {"bool": "boolean"}

FACTS: dict[str, str] = {
    "HLXL": "HLXL is the readable notation.",
    "LC-T": "LC-T is the compact notation in ASCII.",
    "LC-R": "LC-R is the notation in runes.",
    "LC-B": "LC-B is the notation in bytes.",
    "the ascii specialist": "The ascii specialist writes and reads LC-T.",
    "the runic specialist": "The runic specialist writes and reads LC-R.",
    "the gpu specialist": "The gpu specialist knows the contracts 900 to 902.",
    "the coordinator": "The coordinator translates all notations and chooses specialists.",
    **{f"contract {number}": f"Contract {number} is: {name}." for number, name in CONTRACT_NAMES.items()},
}


def explain(value: Value) -> str:
    """Returns a sentence that says what a value is and what it holds."""
    if value is None or isinstance(value, bool):
        return f"This is {'null' if value is None else str(value).lower()}."
    if isinstance(value, str):
        return f"This is a string of {len(value)} characters."
    if isinstance(value, bytes):
        return f"This is {len(value)} bytes."
    if isinstance(value, Handle):
        return f"This is a handle to {value.name}."
    if isinstance(value, int | float):
        return f"This is the {kind_of(value).replace('int', 'integer')} {value}."
    if isinstance(value, Contract):
        name = CONTRACT_NAMES.get(value.id, "not common")
        return f"This is a contract {value.id} ({name}) {_held(list(value.fields.values()))}."
    if isinstance(value, dict):
        return f"This is an object {_held(list(value.values()))}."
    return f"This is an array {_held(value)}."


def _held(parts: list[Value]) -> str:
    kinds = [kind_of(part).replace("int", "integer") for part in parts]
    return f"with {', '.join(_NAMES.get(kind, kind) for kind in kinds)}" if kinds else "with nothing"
