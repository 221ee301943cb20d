"""offload: take a model's experts out of memory and run it all the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from specmoe.speculation import CostGate, Predictor

from ..budget import format_bytes, parse_bytes
from ..stats import TransferStats
from ..store import ExpertKey, ExpertStore, StoreError
from ..tiers import POLICIES, DeviceTier, EvictionPolicy, HostTier
from ..tiers.host import DEFAULT_LANES
from ..tiers.slots import slot_bytes
from .adapters import MoEBlock, expert_weights, free_weights, moe_blocks, put_weights
from .experts import OffloadedExperts
from .loading import Hollow, is_hollow, load_without_experts
from .passes import on_each_pass
from .pipeline import ExpertPipeline
from .predictors import make_predictor
from .stores import checkpoint_store, model_store


class Offload:
    """A model's experts, served from a store; made by `offload`.

    Use it as a context manager, or call `close`. After that the model's experts are gone: `restore` before it brings
    them back into memory.

    Attributes:
        model: the model, whose `generate` and `forward` work as before.
    """

    def __init__(
        self,
        model: Any,
        blocks: list[MoEBlock],
        store: ExpertStore,
        tier: HostTier,
        owns_store: bool,
        device_tier: DeviceTier | None = None,
    ) -> None:
        self.model = model
        self.device_tier = device_tier
        self.blocks = blocks
        self.store = store
        self.tier = tier
        self._owns_store = owns_store
        self._hooks: list[Any] = []
        self._closed = False
        self._process = os.getpid()
        self.pipeline = ExpertPipeline(tier, len(blocks))
        # What cannot be computed from this store is refused before the model is changed.
        self._modules = [self._stand_in(block) for block in blocks]
        for block, module in zip(blocks, self._modules, strict=True):
            self._attach(block, module)
        self._hooks.append(on_each_pass(model, self._begin))

    def _begin(self, tokens: np.ndarray | None, first: bool) -> None:
        """A pass of the model begins; `first` where it is the first one of a sequence."""
        if os.getpid() != self._process:
            # The lanes stayed with the parent, and may have held a lock: whoever waits here waits for ever.
            raise RuntimeError("offload: it belongs to the process before fork: offload the model again")
        if first:
            self.pipeline.reset()
        self.pipeline.begin(tokens)

    def _stand_in(self, block: MoEBlock) -> OffloadedExperts:
        there = block.moe.experts
        original = there.original if isinstance(there, Hollow) else there
        module = OffloadedExperts(block, original, self.tier, self.device_tier)
        module.pipeline = self.pipeline
        module.train(there.training)
        self._restorable = there is original and not self.store.layout.quantization
        return module

    def _attach(self, block: MoEBlock, module: OffloadedExperts) -> None:
        if block.moe.experts is module.original:
            free_weights(module.original)
        block.moe.experts = module

        def note_residual(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self.pipeline.watching:
                self.pipeline.residual = inputs[0].detach().flatten(0, -2)

        self._hooks.append(block.norm.register_forward_pre_hook(note_residual))

    def configure(
        self,
        predictor: Predictor | str | Path | None,
        *,
        gated: bool = True,
        keep: bool = True,
        ahead: int | None = None,
        policy: EvictionPolicy | str | None = None,
    ) -> None:
        """Empty the cache and start over with another way to fill it.

        Args:
            predictor: see `make_predictor`.
            gated: whether guesses are priced before they are loaded.
            keep: with False nothing is cached.
            ahead: how many experts of the next layer are guessed at most; None leaves it to the probabilities.
            policy: order of eviction: one of `tiers.POLICIES` by name, an object, or None for the one there is.
        """
        chosen = make_predictor(predictor, self.blocks)
        self.tier.reset(keep=keep, policy=eviction_policy(policy))
        if self.device_tier is not None:
            self.device_tier.reset()
        self.pipeline = ExpertPipeline(
            self.tier, len(self.blocks), predictor=chosen, gate=CostGate(enabled=gated), ahead=ahead
        )
        for module in self._modules:
            module.pipeline = self.pipeline

    @property
    def stats(self) -> TransferStats:
        """The counts since the last `configure`."""
        return self.tier.stats

    def restore(self) -> None:
        """Read every expert back into the model, and close.

        Raises:
            StoreError: an expert could not be read; the model stays offloaded.
            RuntimeError: the model never had its experts in memory, or the store's are quantized.
        """
        if not self._restorable:
            raise RuntimeError("restore: the model was loaded without its experts, or from a quantized store")
        for block, module in zip(self.blocks, self._modules, strict=True):
            put_weights(
                block,
                module.original,
                [self.store.read(ExpertKey(block.layer, e)) for e in range(block.num_experts)],
            )
        for block, module in zip(self.blocks, self._modules, strict=True):
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
        if os.getpid() != self._process:
            return  # A forked child: threads, locks and files are the parent's.
        _close_all(self.store if self._owns_store else None, self.tier, self.device_tier)

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def offload(
    model: nn.Module | str | Path,
    store: ExpertStore | str | Path | None = None,
    *,
    memory: str | int,
    predictor: Predictor | str | Path | None = "adaptive",
    gated: bool = True,
    policy: EvictionPolicy | str = "guided",
    lanes: int = DEFAULT_LANES,
    check: bool = True,
    quantize: str | None = None,
    pack: bool = False,
    direct: bool | None = None,
    device: str | None = None,
    device_memory: str | int | None = None,
    compute_missed_on_host: bool = False,
) -> Offload:
    """Serve a model's experts from a store within a budget; its outputs keep their bits.

    Args:
        model: a model on the CPU, whose experts' memory is given up; or a directory of a checkpoint, of which
            everything but the experts is loaded (see `Offload.model`). Models of transformers compute their experts
            as `moe_kernels.patch` lets them; Switch Transformers with their own code.
        store: an open store, or a path: what is there is opened, otherwise it is written first. None for a file in the
            cache folder (see `specmoe.offload.locations`): kept for a checkpoint, gone with this process for a model.
        memory: budget for experts in memory: bytes, "6GiB", or "75%" of this machine's memory.
        predictor: what guesses the next layer's experts: "adaptive", which learns while the model runs; the file of a
            fused one that was trained on this model's routes; others see `make_predictor`.
        gated: whether guesses are priced before they are loaded.
        policy: order of eviction: "guided", "lfu-decay", "lfu", "lru", or an object.
        lanes: experts that are read at once.
        check: compare the model's weights (a checkpoint's fingerprint) with the store's first.
        quantize: "nf4" or "int8", for a store that is written from a checkpoint.
        pack: for such a store of experts in bfloat16, take a quarter less of the disk, without loss. It is what a slow
            disk wants; reads from the page cache are faster as they are. A packed store is read as such in any case.
        direct: read past the page cache. None does so unless the memory that is free holds the whole store beside the
            slots: then what was read once is served from there. An open store is read as it was opened.
        device: where the model runs, such as "cuda": the rest of it is moved there, and experts are computed in slots
            there, which are filled from the pinned host slots. None for the CPU, on the host's slots themselves.
        device_memory: budget for slots on the device; a percentage is of the store's experts.
        compute_missed_on_host: let an expert that is not on the device be computed where it lies, if by measured cost
            that is faster than its copy. The result is then the same up to rounding, not to the bit.

    Raises:
        ValueError: the budget holds fewer experts than one token needs, or the model is of no known kind.
        StoreError: the store is damaged, or of another model.
    """
    budget = parse_bytes(memory)
    if isinstance(model, str | Path):
        opened, owns_store = checkpoint_store(model, store, quantize, pack, check, budget, direct)
    else:
        if quantize is not None or pack:
            raise ValueError("offload: quantize, pack: expected a checkpoint's directory as model, got a model")
        require_on_cpu(model)
        opened, owns_store = model_store(model, store, budget, direct)
    try:
        loaded = load_without_experts(model) if isinstance(model, str | Path) else model
        blocks = moe_blocks(loaded)
        slots = slots_within(budget, opened, blocks[0].top_k)
        if check and not is_hollow(loaded):
            require_same_weights(opened, blocks)
        require_all_experts(opened, blocks)
        above: DeviceTier | None = None
        if (device is None) != (device_memory is None):
            raise ValueError("offload: device_memory: expected together with device, got one of them")
        tier = HostTier(opened, slots, policy=eviction_policy(policy), lanes=lanes)
        try:
            if device is not None and device_memory is not None:
                there = parse_bytes(device_memory, whole=opened.layout.expert_bytes, argument="device_memory")
                above = DeviceTier(
                    tier, slots_within(there, opened, blocks[0].top_k), device, on_host=compute_missed_on_host
                )
                loaded.to(device) if is_hollow(loaded) else move_without_experts(loaded, blocks, device)
        except BaseException:
            tier.close()
            raise
    except BaseException:
        if owns_store:
            opened.close()
        raise
    try:
        engine = Offload(loaded, blocks, opened, tier, owns_store, above)
    except BaseException:
        _close_all(opened if owns_store else None, tier, above)
        raise
    try:
        engine.configure(predictor, gated=gated)
    except BaseException:
        if is_hollow(loaded) or isinstance(model, str | Path):
            engine.close()
        else:
            engine.restore()
        raise
    return engine


def _close_all(store: ExpertStore | None, tier: HostTier, device_tier: DeviceTier | None) -> None:
    """Stop the lanes, give the slots' memory back, and close a store that belongs to nobody else."""
    tier.close()
    if device_tier is not None:
        device_tier.close()
        device_tier.pool.give_back()
    tier.pool.give_back()
    if store is not None:
        store.close()


def move_without_experts(model: nn.Module, blocks: list[MoEBlock], device: str) -> None:
    """Move a model to a device, and leave its experts where they are."""
    experts = [block.moe.experts for block in blocks]
    for block in blocks:
        block.moe.experts = nn.Identity()
    try:
        model.to(device)
    finally:
        for block, original in zip(blocks, experts, strict=True):
            block.moe.experts = original


def eviction_policy(policy: EvictionPolicy | str | None) -> EvictionPolicy | None:
    """Return a policy by name; others as they are.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(policy, str):
        return policy
    if policy not in POLICIES:
        raise ValueError(f"offload: policy: expected one of {sorted(POLICIES)}, got {policy!r}")
    return POLICIES[policy]()


def require_on_cpu(model: nn.Module) -> None:
    """Raise ValueError unless a model's experts are on the CPU."""
    for block in moe_blocks(model):
        devices = {parameter.device for parameter in block.moe.experts.parameters()}
        if any(device.type != "cpu" for device in devices):
            raise ValueError(f"offload: model: expected its experts on the CPU, got {block.name} on {devices}")


def require_all_experts(store: ExpertStore, blocks: list[MoEBlock]) -> None:
    """Raise StoreError unless the store has every expert of these blocks, and no more layers than there are blocks."""
    for block in blocks:
        for expert in range(block.num_experts):
            if ExpertKey(block.layer, expert) not in store.layout.blobs:
                raise StoreError(f"store {store.path}: holds no {ExpertKey(block.layer, expert)}")
    names = [f"{block.name}.experts" for block in blocks]
    groups = [group.replace("block_sparse_moe", "mlp") for group in store.layout.groups]
    if groups and groups != names:
        raise StoreError(f"store {store.path}: expected the layers {names[:2]} and on, got {groups[:2]}")


def slots_within(budget: int, store: ExpertStore, top_k: int) -> int:
    """Return how many experts fit, at most all of them.

    Raises:
        ValueError: fewer than one token needs.
    """
    one = slot_bytes(store.layout)
    slots = min(budget // one, len(store.layout.blobs))
    if slots < top_k:
        raise ValueError(
            f"offload: memory: expected at least {format_bytes(top_k * one)} ({top_k * one} bytes), for the {top_k} "
            f"experts of one token, got {format_bytes(budget)} ({budget} bytes)"
        )
    return slots


def require_same_weights(store: ExpertStore, blocks: list[MoEBlock]) -> None:
    """Raise StoreError unless the store holds exactly the experts of these blocks."""
    for block in blocks:
        for expert in range(block.num_experts):
            store.require_same(ExpertKey(block.layer, expert), expert_weights(block, expert))
