"""Answers of the mixed experts, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..training.data import encode_prompt, end_of_turn
from .decoding import Decoding, TokenChooser
from .mixture import MixedStream

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What was generated for one prompt.

    Attributes:
        ids: its tokens, without the one that ends it.
        text: the same as text.
        stopped: whether it ended by itself, and not at the limit.
    """

    ids: list[int]
    text: str
    stopped: bool


def generate(
    experts: Mapping[str, Any],
    tokenizer: Any,
    prompts: Sequence[Messages],
    weights_RE: torch.Tensor,
    decoding: Decoding | None = None,
    on_token: Callable[[torch.Tensor], None] | None = None,
) -> list[Answer]:
    """Returns the answers to a batch of prompts.

    Args:
        experts: the networks by name; all have the tokenizer's vocabulary.
        tokenizer: the shared tokenizer.
        prompts: R lists of turns with `role` and `content`.
        weights_RE: (R, E) what each expert counts for in each row, in the order of `experts`; rows sum to 1.
        decoding: how tokens are chosen; None for the defaults.
        on_token: receives the (rows that still go on) tokens of each step, the end's apart; for prompts one at a time.

    Returns:
        R answers.

    Raises:
        ValueError: a prompt leaves no room for an answer.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    said = continuations(
        list(experts.values()), encoded, weights_RE, decoding or Decoding(),
        tokenizer.pad_token_id, end_of_turn(tokenizer), on_token,
    )  # fmt: skip
    return [Answer(row, tokenizer.decode(row), stopped) for row, stopped in said]


def continuations(
    experts: Sequence[Any],
    encoded: Sequence[Sequence[int]],
    weights_RE: torch.Tensor,
    decoding: Decoding,
    pad_id: int,
    end: int,
    on_token: Callable[[torch.Tensor], None] | None = None,
) -> list[tuple[list[int], bool]]:
    """Returns what follows R rows of tokens, and whether it ended by itself.

    Args:
        experts: the networks.
        encoded: R prompts' tokens.
        weights_RE, decoding, on_token: as `generate` takes them.
        pad_id, end: the tokens that fill shorter rows and that end an answer.

    Raises:
        ValueError: a prompt leaves no room for an answer.
    """
    context = min(expert.config.n_positions for expert in experts)
    if too_long := [len(ids) for ids in encoded if len(ids) >= context]:
        raise ValueError(f"prompt: expected less than {context} tokens, got {too_long[0]}")
    ids, mask = _padded(encoded, pad_id)
    room = mask.new_tensor([context - len(row) for row in encoded])
    limits = room if decoding.max_new_tokens is None else room.clamp(max=decoding.max_new_tokens)
    stream, choose = MixedStream(list(experts), weights_RE), TokenChooser(decoding)
    said: list[list[int]] = [[] for _ in encoded]
    stopped = [False] * len(encoded)
    going = torch.arange(len(encoded))  # which prompt each row of the stream belongs to
    while len(going):
        tokens = choose(stream.step(ids, mask))
        stream.chosen(tokens)
        for prompt, token in zip(going.tolist(), tokens.tolist(), strict=True):
            if token == end:
                stopped[prompt] = True
            else:
                said[prompt].append(token)
        goes_on = tokens != end
        if on_token is not None and goes_on.any():
            on_token(tokens[goes_on])
        goes_on &= limits[going] > torch.tensor([len(said[prompt]) for prompt in going.tolist()])
        rows = torch.nonzero(goes_on)[:, 0]
        if len(rows) < len(going):
            stream.keep(rows)
        ids = tokens[rows, None]
        mask = torch.cat([mask[rows], torch.ones(len(rows), 1, dtype=mask.dtype)], dim=1)
        going = going[rows]
    return list(zip(said, stopped, strict=True))


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and mask, both (R, longest) int64, with the padding at the beginning."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
