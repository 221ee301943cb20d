"""The parameters of a rank's experts: their first values, and the scale of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_kernels.parallel.shards import ExpertShards


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of expert-parallel experts by name: those that differ from rank to rank.

    They are what FSDP2 is told to leave alone (`ignored_params`), and DistributedDataParallel.

    Args:
        module: a model; layers without a process group have none.
    """
    found: dict[str, nn.Parameter] = {}
    for prefix, experts in module.named_modules():
        if isinstance(getattr(experts, "shards", None), ExpertShards):
            found.update(experts.named_parameters(prefix))
    return found


def average_expert_gradients_(module: nn.Module) -> None:
    """Divide the gradients of expert-parallel experts by the size of their group, in place.

    An expert's gradient is the sum over the tokens of all ranks. DistributedDataParallel and FSDP2 average those of
    replicated parameters over the ranks; where the loss is meant to be the mean over the ranks, call this after
    backward and before the optimizer's step, once for a step. It communicates nothing.

    Args:
        module: a model; layers without a process group are left alone.
    """
    for experts in module.modules():
        shards = getattr(experts, "shards", None)
        if isinstance(shards, ExpertShards):
            for parameter in experts.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(shards.size)


def draw(value: Tensor, bound: float, shards: ExpertShards) -> None:
    """Fill (E of the rank, ...) uniformly within ±bound, each expert from a generator of its own.

    An expert's values depend on its number among all experts, not on how many ranks there are.
    """
    if value.is_meta:
        return
    # From torch's generator: ranks that were seeded alike have the same number here, and again the same after it.
    seed = int(torch.randint(2**62, (), device="cpu"))
    with torch.no_grad():
        for local, expert in enumerate(range(shards.first, shards.last)):
            generator = torch.Generator(device=value.device).manual_seed(seed + expert)
            value[local].uniform_(-bound, bound, generator=generator)
