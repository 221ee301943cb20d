"""The coordinator: every notation to every other, which specialist is right, and what the notations are."""

from __future__ import annotations

import itertools

from .specialists import EVERY_KIND, Specialist

_NOTATIONS = ("hlxl", "lc-t", "lc-r", "lc-b")
# What is a specialist's is in here too, so that the coordinator can be asked where the specialist fails.
COORDINATOR = Specialist(
    "coordinator",
    kinds={**EVERY_KIND, "parse": 0.05, "explain": 0.09, "routing": 0.06},
    pairs=dict.fromkeys(itertools.permutations(_NOTATIONS, 2), 1.0),
    own={"hlxl": 1.0, "lc-b": 1.0},
    coordinates=True,
    # 256 hexadecimal numbers have to be known by heart.
    harder={("lc-b", other): 2.5 for other in _NOTATIONS if other != "lc-b"},
)
