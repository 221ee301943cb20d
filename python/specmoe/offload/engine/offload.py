"""offload: take a model's experts out of memory and run it all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specmoe.speculation import CostGate, NextGate, Predictor, PreviousToken

from ..budget import format_bytes, parse_bytes
from ..stats import TransferStats
from ..store import ExpertKey, ExpertStore
from ..tiers import EvictionPolicy, HostTier
from ..tiers.host import DEFAULT_LANES
from .adapters import MoEBlock, expert_tensors, moe_blocks
from .experts import OffloadedExperts
from .pipeline import ExpertPipeline

PREDICTORS = ("next_gate", "previous_token")


def build_model_store(
    model: nn.Module, path: str | Path, *, source: str = "", progress: Callable[[int, int], None] | None = None
) -> ExpertStore:
    """Write all experts of a model to a store and open it (see `ExpertStore.build`)."""
    layers = {block.layer: expert_tensors(block) for block in moe_blocks(model)}
    return ExpertStore.build(layers, path, source=source, progress=progress)


class Offload:
    """A model's experts, served from a store; made by `offload`.

    Use it as a context manager, or call `close`. After that the model's experts are gone: `restore` before it brings
    them back into memory.
    """

    def __init__(self, blocks: list[MoEBlock], store: ExpertStore, tier: HostTier, owns_store: bool) -> None:
        self.blocks = blocks
        self.store = store
        self.tier = tier
        self._owns_store = owns_store
        self._hooks: list[Any] = []
        self._modules: list[OffloadedExperts] = []
        self._closed = False
        self.pipeline = ExpertPipeline(tier, len(blocks))
        for block in blocks:
            self._attach(block)

    def _attach(self, block: MoEBlock) -> None:
        original = block.moe.experts
        module = OffloadedExperts(original, block.layer, block.num_experts, self.tier)
        module.pipeline = self.pipeline
        module.train(original.training)
        for parameter in original.parameters():
            parameter.data = parameter.data.new_empty(0)
        block.moe.experts = module
        self._modules.append(module)

        def note_residual(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.pipeline.residual = inputs[0].detach().flatten(0, -2)

        self._hooks.append(block.norm.register_forward_pre_hook(note_residual))

    def configure(
        self,
        predictor: Predictor | str | None,
        *,
        gated: bool = True,
        keep: bool = True,
        ahead: int | None = None,
    ) -> None:
        """Empty the cache and start over with another way to fill it.

        Args:
            predictor: "next_gate", "previous_token", an object of `specmoe.speculation.Predictor`, or None.
            gated: whether guesses are priced before they are loaded.
            keep: with False nothing is cached.
            ahead: how many experts of the next layer are guessed at most; None leaves it to the probabilities.
        """
        chosen = self._predictor(predictor)
        self.tier.reset(keep=keep)
        self.pipeline = ExpertPipeline(
            self.tier, len(self.blocks), predictor=chosen, gate=CostGate(enabled=gated), ahead=ahead
        )
        for module in self._modules:
            module.pipeline = self.pipeline

    def _predictor(self, predictor: Predictor | str | None) -> Predictor | None:
        if not isinstance(predictor, str):
            return predictor
        first = self.blocks[0]
        if predictor == "next_gate":
            return NextGate({b.layer: b.scores for b in self.blocks}, first.num_experts, first.top_k)
        if predictor == "previous_token":
            return PreviousToken(len(self.blocks), first.num_experts, first.top_k)
        raise ValueError(f"offload: predictor: expected one of {PREDICTORS}, a Predictor or None, got {predictor!r}")

    @property
    def stats(self) -> TransferStats:
        """The counts since the last `configure`."""
        return self.tier.stats

    def restore(self) -> None:
        """Read every expert back into the model, and close.

        Raises:
            StoreError: an expert could not be read; the model stays offloaded.
        """
        weights: list[dict[str, Tensor]] = []
        for block in self.blocks:
            rows = [self.store.read(ExpertKey(block.layer, e)) for e in range(block.num_experts)]
            weights.append({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
        for block, module, tensors in zip(self.blocks, self._modules, weights, strict=True):
            for name, parameter in module.original.named_parameters():
                parameter.data = tensors[name]
            block.moe.experts = module.original
        self.close()

    def close(self) -> None:
        """Stop the reader threads and let go of the slots and the store. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for hook in self._hooks:
            hook.remove()
        for module in self._modules:
            module.pipeline = None
        self.tier.close()
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def offload(
    model: nn.Module,
    store: ExpertStore | str | Path,
    *,
    memory: str | int,
    predictor: Predictor | str | None = "next_gate",
    gated: bool = True,
    policy: EvictionPolicy | None = None,
    lanes: int = DEFAULT_LANES,
    check: bool = True,
) -> Offload:
    """Free a model's experts and serve them from a store within a budget; its outputs keep their bits.

    Args:
        model: a model with `MoELayer` blocks, on the CPU.
        store: an open store, or a path: what is there is opened, otherwise it is written first.
        memory: budget for experts in memory: bytes, "6GiB", or "75%" of this machine's memory.
        predictor: what guesses the next layer's experts: "next_gate", "previous_token", a Predictor, or None.
        gated: whether guesses are priced before they are loaded.
        policy: order of eviction; least recently used by default.
        lanes: reader threads.
        check: compare every weight of the model with the store first.

    Raises:
        ValueError: the budget holds fewer experts than one token needs, or the model is of no known kind.
        StoreError: the store is damaged, or of another model.
    """
    blocks = moe_blocks(model)
    for block in blocks:
        device = next(block.moe.experts.parameters()).device
        if device.type != "cpu":
            raise ValueError(f"offload: model: expected its experts on the CPU, got {block.name} on {device}")
    budget = parse_bytes(memory)
    owns_store = not isinstance(store, ExpertStore)
    if isinstance(store, ExpertStore):
        opened = store
    elif Path(store).exists():
        opened = ExpertStore.open(store)
    else:
        opened = build_model_store(model, store)
    try:
        slots = slots_within(budget, opened, blocks[0].top_k)
        if check:
            require_same_weights(opened, blocks)
        tier = HostTier(opened, slots, policy=policy, lanes=lanes)
    except BaseException:
        if owns_store:
            opened.close()
        raise
    engine = Offload(blocks, opened, tier, owns_store)
    try:
        engine.configure(predictor, gated=gated)
    except BaseException:
        engine.restore()
        raise
    return engine


def slots_within(budget: int, store: ExpertStore, top_k: int) -> int:
    """Return how many experts fit, at most all of them.

    Raises:
        ValueError: fewer than one token needs.
    """
    blob = store.layout.blob_bytes
    slots = min(budget // blob, len(store.layout.blobs))
    if slots < top_k:
        raise ValueError(
            f"offload: memory: expected at least {format_bytes(top_k * blob)} ({top_k * blob} bytes), for the {top_k} "
            f"experts of one token, got {format_bytes(budget)} ({budget} bytes)"
        )
    return slots


def require_same_weights(store: ExpertStore, blocks: list[MoEBlock]) -> None:
    """Raise StoreError unless the store holds exactly the experts of these blocks."""
    for block in blocks:
        tensors = expert_tensors(block)
        for expert in range(block.num_experts):
            store.require_same(ExpertKey(block.layer, expert), {name: t[expert] for name, t in tensors.items()})
