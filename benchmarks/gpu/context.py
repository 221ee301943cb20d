"""What every measuring function is given beside its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gpu import shapes
from gpu.ceilings import Ceilings
from gpu.results import Row
from gpu.timing import Call, Measured, measure, measure_graph, once


class Context(NamedTuple):
    """What a row is measured with.

    Attributes:
        small: sizes are small ones, to try the harness.
        compiling: nothing is timed, each call runs once: what it compiles is there when the row is measured.
    """

    device: torch.device
    ceilings: Ceilings
    small: bool
    compiling: bool = False

    @property
    def models(self) -> dict[str, shapes.Shape]:
        return shapes.SMALL if self.small else shapes.MODELS

    def fitting(self, row: Row) -> shapes.Shape:
        """Return the row's shape, with fewer experts where a training step would not fit the memory."""
        return shapes.fitting(self.models[row.case], row.T, shapes.free_memory(self.device, empty=self.compiling))

    def measure(self, call: Call, limit: float = 0.6, cold: bool = True) -> Measured:
        """Time a call; see timing.measure."""
        return once(call, self.device) if self.compiling else measure(call, self.device, limit, cold)

    def measure_graph(self, calls: Sequence[Call]) -> Measured:
        """Time calls in a CUDA graph; see timing.measure_graph."""
        return once(calls[0], self.device) if self.compiling else measure_graph(calls, self.device)

    def time(self, row: Row, measured: Measured) -> None:
        """Put the times into the row, and the floor of its operations and bytes."""
        row.seconds, row.low, row.high, row.repeats, row.first = measured
        row.floor = self.ceilings.floor(row.operations, row.nbytes)
        row.bound = self.ceilings.bound(row.operations, row.nbytes)
