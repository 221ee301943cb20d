"""Recording the routes of a model while it runs.

Letters: N tokens, L layers, K experts per token, E experts, H hidden, n tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .blocks import SHARED_GATE, RoutedBlock, called_with, find_blocks
from .trace import RouteTrace


class Notes:
    """What the hooks have seen since the last `take`: for every layer, the tensors of each call in turn."""

    def __init__(self, layers: int) -> None:
        self._seen: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in range(layers)] for name in ("experts", "weights", "residuals", "shared")
        }

    def add(self, name: str, layer: int, values: Tensor) -> None:
        """Note (T, ...) of one call."""
        self._seen[name][layer].append(values.detach().cpu())

    def take(self) -> dict[str, np.ndarray]:
        """Return what was noted, as (n, L, ...), and forget it. What no layer has noted is left out."""
        taken: dict[str, np.ndarray] = {}
        for name, layers in self._seen.items():
            if any(layers):
                taken[name] = torch.stack([torch.cat(calls) for calls in layers], dim=1).numpy()
            for calls in layers:
                calls.clear()
        return taken


@contextmanager
def watch(blocks: list[RoutedBlock], hidden: bool = False) -> Iterator[Notes]:
    """Note the routing of every forward pass while the context lasts.

    Args:
        blocks: what `find_blocks` found.
        hidden: also note the residual stream that enters each norm, and the shared experts' output, in float16.
    """
    notes = Notes(len(blocks))
    hooks = []
    for block in blocks:

        def routed(_: nn.Module, inputs: Any, keywords: Any, layer: int = block.layer) -> None:
            ids, weights = called_with(inputs, keywords)
            notes.add("experts", layer, ids)
            notes.add("weights", layer, weights)

        hooks.append(block.experts.register_forward_pre_hook(routed, with_kwargs=True))
        if not hidden:
            continue
        if block.norm is None:
            raise ValueError(f"trace: model: expected a norm beside {block.name}, found none of a known name")

        def entered(_: nn.Module, inputs: Any, layer: int = block.layer) -> None:
            notes.add("residuals", layer, _rows(inputs[0]).half())

        hooks.append(block.norm.register_forward_pre_hook(entered))
        if block.shared is not None:

            def shared(_: nn.Module, inputs: Any, output: Any, block: RoutedBlock = block) -> None:
                values, gate = _rows(output), getattr(block.block, SHARED_GATE, None)
                if gate is not None:
                    values = torch.sigmoid(gate(_rows(inputs[0]))) * values
                notes.add("shared", block.layer, values.half())

            hooks.append(block.shared.register_forward_hook(shared))
    try:
        yield notes
    finally:
        for handle in hooks:
            handle.remove()


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])


@torch.no_grad()
def record_trace(
    model: nn.Module,
    prompts: Iterable[Tensor],
    *,
    new_tokens: int = 0,
    hidden: bool = False,
    part: str | None = None,
    labels: list[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> RouteTrace:
    """Run a model over prompts and return the routes of every token.

    A prompt is continued by `generate` where asked, then all of its tokens go through the model once: the routes are
    those that decoding has, without a cache to keep.

    Args:
        model: a model of transformers, or this project's.
        prompts: token ids (n,), one sequence each.
        new_tokens: how many tokens to generate after each prompt, greedily.
        hidden: also record residual streams and shared experts' outputs.
        part: which stack to watch where a model has several; None: the only one, or the decoder of two (its tokens are
            then generated, and `new_tokens` must be positive), `encoder` for the prompts' own tokens.
        labels: where each prompt comes from.
        progress: called with the number of tokens after each sequence.

    Raises:
        ValueError: nothing was routed, or the layers saw different tokens.
    """
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    within = part if part is not None else ("decoder" if both else "")
    blocks = find_blocks(model, within)
    sequences: list[dict[str, np.ndarray]] = []
    tokens: list[np.ndarray] = []
    with watch(blocks, hidden) as notes:
        for ids in prompts:
            row = ids.reshape(1, -1)
            if both:
                routed = _through_both(model, row, within, new_tokens, notes)
            else:
                routed = _continued(model, row, new_tokens, notes)
                model(routed, use_cache=False)
            sequences.append(notes.take())
            tokens.append(routed.reshape(-1).cpu().numpy().astype(np.int32))
            if progress is not None:
                progress(len(tokens[-1]))
    if not sequences or "experts" not in sequences[0]:
        raise ValueError("trace: prompts: expected at least one that is routed, got none")
    short = [i for i, s in enumerate(sequences) if len(s["experts"]) != len(tokens[i])]
    if short:
        raise ValueError(
            f"trace: model: expected {len(tokens[short[0]])} routed tokens in sequence {short[0]}, got "
            f"{len(sequences[short[0]]['experts'])}"
        )
    E = num_experts_of(model, blocks)
    joined = {name: np.concatenate([s[name] for s in sequences]) for name in sequences[0]}
    experts = joined.pop("experts").astype(np.min_scalar_type(E))
    weights = joined.pop("weights").astype(np.float16)
    starts = np.cumsum([0, *map(len, tokens)]).astype(np.int64)
    named = None if labels is None else np.array(labels, dtype=np.str_)
    return RouteTrace(experts, starts, E, weights, np.concatenate(tokens), labels=named, **joined)


def _continued(model: Any, row: Tensor, new_tokens: int, notes: Notes) -> Tensor:
    """Return a prompt (1, n) with its continuation, and forget what generating it has noted."""
    if new_tokens:
        row = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=new_tokens, do_sample=False)
        notes.take()
    return row


def _through_both(model: Any, row: Tensor, within: str, new_tokens: int, notes: Notes) -> Tensor:
    """Run an encoder and a decoder; return the tokens (1, n) of the one that is watched."""
    if within == "encoder":
        model.get_encoder()(row)
        return row
    if new_tokens < 1:
        raise ValueError("trace: new_tokens: expected at least 1 where the decoder is watched, got 0")
    written = model.generate(row, max_new_tokens=new_tokens, do_sample=False)
    notes.take()
    model(input_ids=row, decoder_input_ids=written, use_cache=False)
    return written


def num_experts_of(model: nn.Module, blocks: list[RoutedBlock]) -> int:
    """Return E: what the blocks' gates say, else the configuration."""
    weight = blocks[0].gate_weight
    if weight is not None:
        return len(weight)
    config = getattr(model, "config", None)
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise ValueError(f"trace: model: expected a gate's matrix or a number of experts in {type(model).__name__}")
