"""Checkpoints of expert-parallel layers: a rank's part of a full one, and a full one of all parts."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from moe_kernels.parallel.shards import OP, ExpertShards
from moe_kernels.validation import fail

# Where a state_dict's metadata say which experts an entry holds.
RANGE = "expert_range"


def own_part(name: str, value: Tensor, shards: ExpertShards | None, num_local: int, metadata: dict[str, Any]) -> Tensor:
    """Return a rank's part of a stack of experts from a checkpoint.

    Args:
        name: the parameter's, for messages.
        value: (E, ...), of which the rank's experts are taken, or the rank's own (E of the rank, ...).
        shards: who owns which experts; None for a layer without a process group.
        num_local: experts of the layer that loads.
        metadata: of the checkpoint's module, which may name the experts that it holds (see `remember_range`).

    Raises:
        ValueError: the stack has neither all experts nor this rank's.
    """
    held = metadata.get(RANGE)
    have = value.shape[0] if value.dim() else 0
    if shards is None:
        if held is not None or have != num_local:
            what = f"{have} experts" if held is None else f"experts {held[0]} to {held[1]} of {held[2]}"
            fail(
                OP,
                name,
                f"all {num_local} experts, as this layer has no process_group (gather shards by full_state_dict)",
                what,
            )
        return value
    if held is not None:
        if tuple(held) != (shards.first, shards.last, shards.num_experts):
            fail(OP, name, str(shards), f"experts {held[0]} to {held[1]} of {held[2]}, the shard of another rank")
        return value
    if have == shards.num_experts:
        return value[shards.first : shards.last]
    if have != num_local:
        expected = f"all {shards.num_experts} experts, or this rank's {num_local} (from {shards.first})"
        fail(OP, name, expected, f"{have} experts")
    return value


def full_state_dict(module: nn.Module, *, rank0_only: bool = False, to_cpu: bool = True) -> dict[str, Any]:
    """Return the state_dict that the same model without process groups would have.

    It is a collective: every rank calls it, for the same model. Each rank's experts are broadcast in turn into one
    parameter at a time. `load_state_dict` of an expert-parallel layer takes its part of what this returns.

    Args:
        module: a model with any number of expert-parallel layers.
        rank0_only: ranks but the first of each group drop the experts, and return them as missing entries.
        to_cpu: move the experts' stacks to the CPU as they come, so that a device holds one of them at a time.

    Returns:
        Names to tensors; what no group shards is as `module.state_dict()` gives it.
    """
    state = module.state_dict()
    metadata = getattr(state, "_metadata", {})
    gathered: dict[int, Tensor | None] = {}
    # A layer that is used twice has both names in a state_dict.
    for prefix, experts in module.named_modules(remove_duplicate=False):
        if getattr(experts, "expert_shards", None) and not hasattr(experts.experts, "shards"):
            kind = type(experts.experts).__name__
            fail("full_state_dict", f"{prefix}.experts".lstrip("."), "the experts of MoELayer, not replaced", kind)
        shards = getattr(experts, "shards", None)
        if not isinstance(shards, ExpertShards):
            continue
        for name, parameter in experts.named_parameters():
            key = f"{prefix}.{name}" if prefix else name
            if id(parameter) not in gathered:
                full = _gather(parameter.detach(), shards)
                dropped = rank0_only and shards.rank
                gathered[id(parameter)] = None if dropped else full.cpu() if to_cpu else full
            if (value := gathered[id(parameter)]) is None:
                del state[key]
            else:
                state[key] = value
        metadata.get(prefix, {}).pop(RANGE, None)
    return state


def _gather(value: Tensor, shards: ExpertShards) -> Tensor:
    # FSDP2 may have sharded them once more, over ranks that have the same experts.
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    full = value.new_empty(shards.num_experts, *value.shape[1:])
    full[shards.first : shards.last] = value
    for r in range(shards.size):
        begin, end = shards.bounds[r], shards.bounds[r + 1]
        # A range of the first dimension is contiguous: it is received where it belongs.
        if end > begin:
            dist.broadcast(full[begin:end], dist.get_global_rank(shards.group, r), group=shards.group)
    return full


def remember_range(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Note in a state_dict's metadata which experts it holds; a hook of `Experts`."""
    shards = getattr(module, "shards", None)
    if isinstance(shards, ExpertShards) and shards.size > 1:
        metadata[RANGE] = (shards.first, shards.last, shards.num_experts)
