"""offload: take a model's experts out of memory and run it all the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from specmoe.speculation import CostGate, Predictor

from ..budget import fits_page_cache, format_bytes, free_memory, parse_bytes
from ..checkpoint import Checkpoint, build_checkpoint_store
from ..locations import cache_dir
from ..stats import TransferStats
from ..store import ExpertKey, ExpertStore, StoreError, build_store
from ..tiers import POLICIES, DeviceTier, EvictionPolicy, HostTier
from ..tiers.host import DEFAULT_LANES
from ..tiers.slots import slot_bytes
from .adapters import MoEBlock, expert_weights, free_weights, moe_blocks, put_weights
from .experts import OffloadedExperts
from .loading import Hollow, is_hollow, load_without_experts
from .passes import on_each_pass
from .pipeline import ExpertPipeline
from .predictors import make_predictor


def build_model_store(
    model: nn.Module, path: str | Path, *, source: str = "", progress: Callable[[int, int], None] | None = None
) -> ExpertStore:
    """Write all experts of a model to a store and open it (see `ExpertStore.build`)."""
    blocks = moe_blocks(model)
    keys = [ExpertKey(block.layer, e) for block in blocks for e in range(block.num_experts)]
    build_store(path, keys, lambda key: expert_weights(blocks[key.layer], key.expert), source=source, progress=progress)
    return ExpertStore.open(path)


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
        self._modules: list[OffloadedExperts] = []
        self._closed = False
        self.pipeline = ExpertPipeline(tier, len(blocks))
        for block in blocks:
            self._attach(block)
        self._hooks.append(on_each_pass(model, self._begin))

    def _begin(self, tokens: np.ndarray | None, first: bool) -> None:
        """A pass of the model begins; `first` where it is the first one of a sequence."""
        if first:
            self.pipeline.reset()
        if tokens is not None:
            self.pipeline.begin(tokens)

    def _attach(self, block: MoEBlock) -> None:
        there = block.moe.experts
        original = there.original if isinstance(there, Hollow) else there
        module = OffloadedExperts(block, original, self.tier, self.device_tier)
        module.pipeline = self.pipeline
        module.train(there.training)
        if there is original:
            free_weights(original)
        self._restorable = there is original and not self.store.layout.quantization
        block.moe.experts = module
        self._modules.append(module)

        def note_residual(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
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
        self.tier.close()
        if self.device_tier is not None:
            self.device_tier.close()
        if self._owns_store:
            self.store.close()

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
        opened, owns_store = _checkpoint_store(model, store, quantize, check, budget, direct)
    else:
        if quantize is not None:
            raise ValueError("offload: quantize: expected a checkpoint's directory as model, got a model")
        require_on_cpu(model)
        opened, owns_store = _model_store(model, store, budget, direct)
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
                there = parse_bytes(device_memory, whole=opened.layout.payload_bytes, argument="device_memory")
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
    engine = Offload(loaded, blocks, opened, tier, owns_store, above)
    try:
        engine.configure(predictor, gated=gated)
    except BaseException:
        if is_hollow(loaded) or isinstance(model, str | Path):
            engine.close()
        else:
            engine.restore()
        raise
    return engine


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


def _open(path: Path, budget: int, direct: bool | None) -> ExpertStore:
    if direct is None:
        direct = not fits_page_cache(path.stat().st_size, budget, free_memory())
    return ExpertStore.open(path, direct=direct)


def _model_store(
    model: nn.Module, store: ExpertStore | str | Path | None, budget: int, direct: bool | None
) -> tuple[ExpertStore, bool]:
    """Return a model's store, and whether this module opened it."""
    if isinstance(store, ExpertStore):
        return store, False
    if store is not None:
        if not Path(store).exists():
            build_model_store(model, store).close()
        return _open(Path(store), budget, direct), True
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"offload-{os.getpid()}-{os.urandom(4).hex()}.store"
    build_model_store(model, path).close()
    opened = _open(path, budget, direct)
    # It is read through the open file, and gone when that is closed, however the process ends.
    path.unlink()
    return opened, True


def _checkpoint_store(
    folder: str | Path,
    store: ExpertStore | str | Path | None,
    quantize: str | None,
    check: bool,
    budget: int,
    direct: bool | None,
) -> tuple[ExpertStore, bool]:
    """Return a checkpoint's store, written if there is none, and whether this module opened it."""
    if isinstance(store, ExpertStore):
        opened, owned = store, False
    else:
        path = default_store(folder, quantize) if store is None else Path(store)
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            build_checkpoint_store(folder, path, quantize=quantize).close()
        opened, owned = _open(path, budget, direct), True
    try:
        if quantize is not None and opened.layout.quantization != quantize:
            raise StoreError(
                f"store {opened.path}: expected it to be quantized to {quantize}, got "
                f"{opened.layout.quantization or 'weights as they are'}"
            )
        if check and not opened.layout.source.endswith(Checkpoint(folder).fingerprint()):
            raise StoreError(f"store {opened.path}: it was made from another model than the one in {folder}")
    except BaseException:
        if owned:
            opened.close()
        raise
    return opened, owned


def default_store(folder: str | Path, quantize: str | None = None) -> Path:
    """Return where a checkpoint's store is kept unless somebody says otherwise."""
    name = f"{Path(folder).absolute().name}-{Checkpoint(folder).fingerprint()}{f'-{quantize}' if quantize else ''}"
    return cache_dir() / "stores" / f"{name}.store"


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
