"""The specialists there are."""

from __future__ import annotations

from .ascii import ASCII
from .coordinator import COORDINATOR
from .gpu import GPU
from .runic import RUNIC
from .specialists import Specialist

SPECIALISTS: dict[str, Specialist] = {specialist.name: specialist for specialist in (COORDINATOR, ASCII, RUNIC, GPU)}


def specialist_named(name: str) -> Specialist:
    """Returns a specialist by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in SPECIALISTS:
        raise ValueError(f"specialist: expected {', '.join(SPECIALISTS)}, got {name!r}")
    return SPECIALISTS[name]
