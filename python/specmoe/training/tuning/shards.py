"""Forward and backward passes in parts side by side, for models whose operations are too short for two threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


class ShardedStep:
    """Divides a batch among threads that share the model; each computes its part's loss and gradient.

    An operation of a small model takes some ten microseconds, which is what two threads need to meet at its end. Here
    they meet once a step. torch adds up the gradients of a parameter under a lock, and a sum of two does not depend on
    who comes first, so a step of two shards has the same bits every time; of three or more it has not.
    """

    def __init__(self, model: Any, shards: int) -> None:
        """Starts the threads, each with its share of torch's.

        Args:
            model: of transformers or PEFT, on a CPU, without dropout.
            shards: how many parts.

        Raises:
            ValueError: the model draws random numbers, which the threads would take in any order.
        """
        drawing = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p]
        drawing += [name for name, value in vars(model.config).items() if "drop" in name and value]
        if drawing:
            raise ValueError(f"shards: expected a model without dropout, got {drawing[0]}")
        threads = max(1, torch.get_num_threads() // shards)
        self.shards = shards
        # A thread's own setting.
        self.pool = ThreadPoolExecutor(shards, initializer=torch.set_num_threads, initargs=(threads,))

    def __call__(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        num_items: torch.Tensor | int,
        backward: Callable[[torch.Tensor], Any],
    ) -> torch.Tensor:
        """Adds a batch's gradient to that of the parameters.

        Args:
            model: a causal language model of transformers.
            inputs: (rows, tokens) each, `labels` among them.
            num_items: what the sum of the tokens' losses is divided by.
            backward: computes the gradient of a loss.

        Returns:
            The loss, () float32.
        """

        def part(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            loss = model(**inputs, num_items_in_batch=num_items).loss
            backward(loss)
            return loss.detach()

        rows = {name: value.chunk(self.shards) for name, value in inputs.items()}
        parts = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        return torch.stack(list(self.pool.map(part, parts))).sum()

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()
