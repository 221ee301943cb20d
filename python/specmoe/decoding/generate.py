"""`generate`, as transformers has it, with steps of `State` where the model and the options are known."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .choosing import chooser
from .network import read
from .state import State

# Options whose meaning is known here; any other is transformers' business.
KNOWN = {
    "do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "eos_token_id", "pad_token_id",
    "bos_token_id", "use_cache", "transformers_version",
}  # fmt: skip


@torch.no_grad()
def generate(model: Any, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
    """Continues prompts as `model.generate` does: the same choices, up to the rounding of products, norms, attention.

    Args:
        model: a causal model of transformers, with whatever stands in place of its linear layers.
        input_ids: (B, S) int64, padded at the front.
        attention_mask: (B, S) or (1, S), 1 for tokens and 0 for padding.
        options: of transformers' `GenerationConfig`; the model's own stand where none is given.

    Returns:
        (B, S + new tokens): prompts and continuations; a row that has ended is filled with the padding token.
    """
    config = copy.deepcopy(model.generation_config)
    config.update(**options)
    network = read(model)
    if network is None or not _knows(config, options) or not _padded_in_front(input_ids, attention_mask):
        return model.generate(input_ids, attention_mask=attention_mask, **options)
    mask = (attention_mask != 0).expand_as(input_ids).long()
    return _continue(State(network, mask), input_ids, config)


def _continue(state: State, ids: Tensor, config: Any) -> Tensor:
    choose = chooser(config)
    ends = config.eos_token_id
    ends = None if ends is None else torch.tensor(ends, device=ids.device).reshape(-1)
    padding = config.pad_token_id
    if padding is None and ends is not None:
        padding = int(ends[0])
    prompt, room = ids.shape[1], config.max_new_tokens
    out = torch.cat((ids, ids.new_zeros(len(ids), room)), 1)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    logits = state.read(ids)
    for n in range(prompt, prompt + room):
        tokens = choose(out[:, :n], logits.float())
        if ends is not None:
            tokens = torch.where(going, tokens, padding)
            going &= ~torch.isin(tokens, ends)
        out[:, n] = tokens
        if not going.any():
            return out[:, : n + 1]
        if n + 1 < prompt + room:
            logits = state.step(tokens)
    return out


def _knows(config: Any, options: dict[str, Any]) -> bool:
    """Whether everything that is asked for, or set in the model's configuration, is known here."""
    asked = {**config.to_diff_dict(), **options}
    named = {name for name, value in asked.items() if not name.startswith("_") and value not in (None, False)}
    return named <= KNOWN and config.max_new_tokens is not None and config.use_cache is not False


def _padded_in_front(ids: Tensor, mask: Tensor) -> bool:
    """Whether there are prompts, and a mask for them (of each row, or one for all) that hides tokens in front alone."""
    if ids.shape[1] == 0 or mask.dim() != 2 or mask.shape[1] != ids.shape[1] or mask.shape[0] not in (1, len(ids)):
        return False
    seen = mask != 0
    return bool((seen[:, 1:] >= seen[:, :-1]).all()) and bool(seen[:, -1].all())
