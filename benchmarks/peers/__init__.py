"""The libraries that the benchmarks compare with, one file each.

A peer of the whole expert MLP has `prepare(gate_up, down, copies)`, which packs what it needs and returns its forward.
On a GPU it is `prepare_gpu(gate_up, down)`, which returns an `Arm`.
One that cannot be loaded or does not run on this machine raises `Unavailable`; the table then shows "-".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Unavailable(RuntimeError):
    """A peer does not run here; the message is the reason."""


class Tokens(NamedTuple):
    """Inputs of an expert MLP, with the routing in the types that each library wants.

    Attributes:
        x: (T, H).
        indices: (T, K) int32.
        wide: `indices` as int64.
        routing: (T, K) float32.
        narrow: `routing` in x's dtype.
    """

    x: Tensor
    indices: Tensor
    wide: Tensor
    routing: Tensor
    narrow: Tensor


# Called with the number of the copy of the weights to use.
Forward = Callable[[int, Tokens], Tensor]


def copied(tensor: Tensor, copies: int) -> list[Tensor]:
    """Return `tensor` and as many clones of it as make `copies`."""
    return [tensor, *(tensor.clone() for _ in range(copies - 1))]


class Arm(NamedTuple):
    """One implementation of the expert MLP on a GPU, over its own form of the weights.

    Attributes:
        forward: gives (T, H).
        gate_up: (E, 2I, H), what it reads and what gets a gradient.
        down: (E, H, I), likewise.
        interleaved: its gate and up rows alternate.
        trains: there is a backward.
    """

    forward: Callable[[Tokens], Tensor]
    gate_up: Tensor
    down: Tensor
    interleaved: bool = False
    trains: bool = True
