"""Training and validation windows over one stream of tokens.

The first nine tenths of the stream are for training, the rest for validation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from .errors import DataError

IGNORED_LABEL = -100


class Split(NamedTuple):
    """A stream of tokens (N) int64 and the index of its first validation token."""

    tokens: torch.Tensor
    boundary: int


def split_in_order(tokens: torch.Tensor, block_size: int) -> Split:
    """Splits the stream 90/10 in order.

    Args:
        tokens: (N) token ids.
        block_size: context length in tokens.

    Returns:
        The split.

    Raises:
        DataError: the training part has not two windows of `block_size`.
    """
    boundary = int(0.9 * len(tokens))
    if boundary < 2 * block_size + 1:
        raise DataError(
            f"dataset: expected at least {2 * block_size + 1} training tokens for block_size={block_size}, "
            f"got {boundary} (nine tenths of {len(tokens)})"
        )
    return Split(tokens, boundary)


class TrainWindows(Dataset):
    """Every window of the whole run, in the order in which it is trained on.

    Window i is a function of the seed alone, so a resumed run needs to remember no more than the step. One pass over
    the text is cut at a random phase into adjoining windows, which are shuffled; the next pass has another phase.
    """

    def __init__(self, tokens: torch.Tensor, block_size: int, count: int, seed: int) -> None:
        """Draws the windows.

        Args:
            tokens: (N) training tokens, N > 2 * block_size.
            block_size: tokens in a window; one more is its last target.
            count: windows in the whole run.
            seed: seed of the phases and orders.
        """
        generator = torch.Generator().manual_seed(seed)
        starts, total = [], 0
        while total < count:
            phase = int(torch.randint(block_size, (), generator=generator))
            firsts = torch.arange(phase, len(tokens) - block_size, block_size)
            starts.append(firsts[torch.randperm(len(firsts), generator=generator)])
            total += len(firsts)
        self.starts = torch.cat(starts)[:count]
        self.tokens = tokens
        self.offsets = torch.arange(block_size + 1)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Returns a whole batch at once: `input_ids` and `shift_labels`, each (len(indices), block_size)."""
        windows = self.tokens[self.starts[indices][:, None] + self.offsets]
        return {"input_ids": windows[:, :-1].contiguous(), "shift_labels": windows[:, 1:].contiguous()}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns window `index`, each tensor (block_size)."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def keep_batch(batch: Any) -> Any:
    """Collator for data that comes as batches already."""
    return batch


def validation_windows(split: Split, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts the validation part into adjoining windows so that each of its tokens is predicted exactly once.

    Each window sees only itself; the first begins with the last training token, as the context of the first validation
    token. The last one is filled up with ignored labels.

    Args:
        split: the stream and where validation begins.
        block_size: tokens in a window.

    Returns:
        input_ids and shift_labels, each (windows, block_size) int64.
    """
    inputs, labels = split.tokens[split.boundary - 1 : -1], split.tokens[split.boundary :]
    missing = -len(labels) % block_size
    inputs = torch.nn.functional.pad(inputs, (0, missing), value=0)
    labels = torch.nn.functional.pad(labels, (0, missing), value=IGNORED_LABEL)
    return inputs.view(-1, block_size), labels.view(-1, block_size)
