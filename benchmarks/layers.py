"""The expert layer of one model in memory: copies of its weights, and each peer's packed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import Call, copies_for
from peers import Forward, Tokens, Unavailable, sglang, transformers, vllm

from moe_kernels.pages import collapse_pages
from moe_kernels.testing import random_indices

LIBRARIES = {"vLLM": vllm.prepare, "SGLang": sglang.prepare, "SGLang int8": sglang.prepare_int8}


class Layer:
    """Weights, peers and inputs of one shape.

    Args:
        shape: E, K, H, I.
        session: where to say which peer is missing.
    """

    def __init__(self, name: str, shape: Any, dtype: torch.dtype, session: Any) -> None:
        self.name, self.shape, self.dtype, self.session = name, shape, dtype, session
        E, _, H, I = shape
        torch.manual_seed(0)
        gate_up = torch.empty(E, 2 * I, H, dtype=dtype).normal_(0, H**-0.5)
        down = torch.empty(E, H, I, dtype=dtype).normal_(0, I**-0.5)
        self.copies = copies_for(self.expert_bytes * E)
        self.weights = [(gate_up, down), *((gate_up.clone(), down.clone()) for _ in range(self.copies - 1))]
        if session.huge_pages:
            collapse_pages(weight for pair in self.weights for weight in pair)
        self.forwards: dict[str, Forward | None] = {}
        self.kept: dict[str, Any] = {}

    def free(self) -> None:
        for held in (self.weights, self.forwards, self.kept):
            held.clear()

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` made when it was first asked for under this name."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's weights."""
        return 3 * self.shape.I * self.shape.H * self.dtype.itemsize

    def operations(self, T: int) -> int:
        """Of a forward of T tokens."""
        return 2 * T * self.shape.K * 3 * self.shape.I * self.shape.H

    def tokens(self, T: int) -> list[Tokens]:
        """Return inputs that differ in the experts' numbers, so that in turn they ask for all experts.

        The rows of an expert are as many in all of them.
        """
        E, K, H, _ = self.shape
        indices = random_indices(T, E, K)
        x = torch.randn(T, H, generator=torch.Generator().manual_seed(1)).to(self.dtype)
        routing = torch.softmax(torch.randn(T, K, generator=torch.Generator().manual_seed(2)), 1)
        shifted = [(indices + step * K) % E for step in range(max(1, E // K))]
        return [Tokens(x, i, i.long(), routing, routing.to(self.dtype)) for i in shifted]

    def arm(
        self,
        name: str,
        prepare: Callable[[], Forward],
        tokens: list[Tokens],
        copies: int | None = None,
        must: bool = False,
    ) -> Call | None:
        """Return the arm of a forward, which is made once for this layer; None where it does not run here.

        Args:
            copies: how many copies `prepare` makes, if not as many as there are of the weights.
            must: an error is not a reason to leave it out.
        """
        if name not in self.forwards:
            try:
                self.forwards[name] = prepare()
            except (Unavailable, ImportError, RuntimeError) as error:
                if must:
                    raise
                self.session.unavailable(name, error)
                self.forwards[name] = None
        forward, copies = self.forwards[name], copies or self.copies
        if forward is None:
            return None
        return lambda turn: forward(turn % copies, tokens[turn // copies % len(tokens)])

    def transformers(self, tokens: list[Tokens]) -> dict[str, Call | None]:
        """The arms of transformers."""
        return {
            name: self.arm(name, lambda name=name: transformers.forward(self.weights, name), tokens)
            for name in ("eager", "grouped_mm")
        }

    def peer(self, name: str, tokens: list[Tokens]) -> Call | None:
        """The arm of one name of LIBRARIES."""
        return self.arm(name, lambda: LIBRARIES[name](*self.weights[0], self.copies), tokens)

    def peers(self, tokens: list[Tokens]) -> dict[str, Call | None]:
        """The arms of vLLM and SGLang."""
        return {name: self.peer(name, tokens) for name in LIBRARIES}
