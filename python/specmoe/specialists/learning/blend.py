"""Adapters between one as it was and as it is now: less of what is new, more of what was kept.

After M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: on the straight line between two sets of
weights what was learned holds longer than what was lost by learning it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch


class Blend:
    """The weights of an adapter as they are now, to go back to.

    Args:
        parameters: the weights; they are changed in place.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.before = [parameter.detach().clone() for parameter in self.parameters]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Within the block the weights are the old ones."""
        after = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self.before)
        try:
            yield
        finally:
            self._set(after)

    @torch.no_grad()
    def find(self, shares: Sequence[float], good: Callable[[], bool]) -> bool:
        """Leaves the weights at the first mixture that is good, and where none is as they came.

        Args:
            shares: of the present weights, from 0 (as before) to 1, in the order in which they are tried.
            good: judges the weights as they are when it is called.

        Returns:
            Whether one is good.
        """
        after = [parameter.detach().clone() for parameter in self.parameters]
        for share in shares:
            self._set([torch.lerp(old, new, share) for old, new in zip(self.before, after, strict=True)])
            if good():
                return True
        self._set(after)
        return False

    @torch.no_grad()
    def _set(self, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
