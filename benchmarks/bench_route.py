"""route against transformers' one_hot and where (eager), or sort and histc (grouped_mm)."""

from __future__ import annotations

from peers import steps

from moe_kernels import route
from moe_kernels.testing import random_indices


def test_route(compare, shape, T):
    indices = [random_indices(T, shape.E, shape.K, seed=i) for i in range(8)]
    wide = [value.long() for value in indices]
    compare(
        {
            "ours": lambda copy: route(indices[copy], shape.E),
            "eager": lambda copy: steps.route_eager(wide[copy], shape.E),
            "grouped_mm": lambda copy: steps.route_grouped(wide[copy], shape.E),
        },
        check=False,
        nbytes=T * shape.K * 12,
        copies=8,
    )
