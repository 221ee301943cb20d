"""A specialist for some contracts only, as an example of how one is added: shader, kernel and pipeline, 900 to 902."""

from __future__ import annotations

from .specialists import Specialist, both_ways

GPU = Specialist(
    "gpu",
    kinds={"contracts": 0.5, "nested": 0.25, "parse": 0.15, "explain": 0.1},
    pairs={**both_ways("lc-t"), **both_ways("lc-r"), ("lc-t", "lc-r"): 1.0, ("lc-r", "lc-t"): 1.0},
    own={"lc-t": 1.0, "lc-r": 1.0},
    gpu=True,
)
