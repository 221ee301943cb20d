"""What this device does at best, as it is measured in the run itself: a large matrix product and a large copy."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gpu.timing import measure


class Ceilings(NamedTuple):
    """Rates that a floor is made of.

    Attributes:
        matmul: operations per second of a product of two square matrices, a multiply-add being two.
        copy: bytes per second of a copy, counting those read and those written.
        read: bytes per second of summing a tensor; for information.
    """

    matmul: float
    copy: float
    read: float

    def floor(self, operations: float, nbytes: float) -> float:
        """Seconds that a piece of work needs at least."""
        return max(operations / self.matmul, nbytes / self.copy)

    def bound(self, operations: float, nbytes: float) -> str:
        return "matmul" if operations / self.matmul > nbytes / self.copy else "copy"


def measure_ceilings(device: torch.device, small: bool) -> Ceilings:
    """Multiply 8192 × 8192 bfloat16 matrices of random values and copy 4 GiB."""
    n, nbytes = (256, 2**22) if small else (8192, 2**32)
    torch.manual_seed(0)
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    # The first time brings the clocks up.
    for _ in range(2):
        product = measure(lambda: torch.mm(a, b), device, limit=1.0, cold=False)
    source = torch.randint(0, 2**31 - 1, (nbytes // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source), device, limit=1.0, cold=False)
    floats = source.view(torch.float32)
    read = measure(lambda: torch.amax(floats), device, limit=0.5, cold=False)
    # The median of a device that is not otherwise used; the best would be a ceiling that nothing reaches on average.
    return Ceilings(2 * n**3 / product.seconds, 2 * nbytes / copy.seconds, nbytes / read.seconds)
