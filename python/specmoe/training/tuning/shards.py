"""Forward and backward passes in parts side by side, for models whose operations are too short for two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class ShardedStep:
    """Divides a batch among threads that share the model; each computes its part's loss and gradient.

    An operation of a small model takes some ten microseconds, which is what two threads need to meet at its end. Here
    they meet once a step. torch adds up the gradients of a parameter under a lock, and a sum of two does not depend on
    who comes first, so a step of two shards has the same bits every time; of three or more it has not.

    Dropout draws from the process's random numbers, which threads would take in any order: until `close` each shard's
    come from a generator of its own, which begins anew at every step.
    """

    def __init__(self, model: Any, shards: int) -> None:
        """Starts the threads, each with its share of torch's.

        Args:
            model: of transformers or PEFT, on a CPU.
            shards: how many parts.
        """
        self.model, self.shards = model, shards
        self.generators = [torch.Generator() for _ in range(shards)]
        self.own = threading.local()
        self.replaced = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Dropout) and module.p and not module.inplace
        }
        for name, module in self.replaced.items():
            model.set_submodule(name, _ShardDropout(module.p, self.own).train(module.training))
        self.looked = False
        threads = max(1, torch.get_num_threads() // shards)
        # A thread's own setting.
        self.pool = ThreadPoolExecutor(shards, initializer=torch.set_num_threads, initargs=(threads,))

    def __call__(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        num_items: Tensor | int,
        backward: Callable[[Tensor], Any],
        seed: Sequence[int],
    ) -> Tensor:
        """Adds a batch's gradient to that of the parameters.

        Args:
            model: what is called: the model, or what the Trainer has made of it.
            inputs: (rows, tokens) each, `labels` among them.
            num_items: what the sum of the tokens' losses is divided by.
            backward: computes the gradient of a loss.
            seed: of dropout; other numbers at every call.

        Returns:
            The loss, () float32.

        Raises:
            ValueError: the model draws random numbers elsewhere than in `nn.Dropout`.
        """

        def part(shard: int) -> Tensor:
            self.own.generator = self.generators[shard]
            self.own.generator.manual_seed(int(np.random.SeedSequence([*seed, shard]).generate_state(1)[0]))
            loss = model(**parts[shard], num_items_in_batch=num_items).loss
            backward(loss)
            return loss.detach()

        rows = {name: value.chunk(self.shards) for name, value in inputs.items()}
        parts = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        before = None if self.looked else torch.get_rng_state()
        losses = list(self.pool.map(part, range(len(parts))))
        if before is not None and not torch.equal(before, torch.get_rng_state()):
            raise ValueError("shards: expected a model that draws random numbers in nn.Dropout alone, got another")
        self.looked = True
        return torch.stack(losses).sum()

    def close(self) -> None:
        """Ends the threads and gives the model its own dropout back."""
        self.pool.shutdown()
        for name, module in self.replaced.items():
            self.model.set_submodule(name, module.train(self.model.training))


class _ShardDropout(nn.Module):
    """Dropout from the generator of the shard that calls it."""

    def __init__(self, p: float, own: threading.local) -> None:
        super().__init__()
        self.p, self.own = p, own

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.own.generator)
        return x * kept.div_(1 - self.p)
