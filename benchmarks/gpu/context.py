"""What every measuring function is given beside its row."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gpu import shapes
from gpu.ceilings import Ceilings
from gpu.results import Row
from gpu.timing import Measured


class Context(NamedTuple):
    """The device, its ceilings, and whether sizes are small ones to try the harness."""

    device: torch.device
    ceilings: Ceilings
    small: bool

    @property
    def models(self) -> dict[str, shapes.Shape]:
        return shapes.SMALL if self.small else shapes.MODELS

    def time(self, row: Row, measured: Measured) -> None:
        """Put the times into the row, and the floor of its operations and bytes."""
        row.seconds, row.low, row.high, row.repeats, row.first = measured
        row.floor = self.ceilings.floor(row.operations, row.nbytes)
        row.bound = self.ceilings.bound(row.operations, row.nbytes)
