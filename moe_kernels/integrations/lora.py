"""LoRA on experts (`LoraConfig(target_parameters=[…])` of PEFT) in low-rank form.

PEFT adds the product of the two factors to the whole stack of experts before each forward. Here the stack stays as it
is, and each row meets the two factors of its own expert (`grouped_lora`). The adapters are PEFT's own modules, trained,
saved and loaded by PEFT. Served are expert modules of transformers whose implementation is "moe_kernels", those of
`MoELayer`, and quantized ones; every other module is left to PEFT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moe_kernels.backends.reference.activations import GPT_OSS_ALPHA, GPT_OSS_LIMIT, split_gate_up
from moe_kernels.choices import weights_of_choices
from moe_kernels.integrations.experts import parts_of
from moe_kernels.integrations.lora_refusals import refuse_over_quantized
from moe_kernels.integrations.low_bits import low_bits, widen_at_first_use
from moe_kernels.integrations.recognition import bare, is_experts, recognize
from moe_kernels.integrations.steps import Delta, Parts, expert_of_row, experts_in_steps
from moe_kernels.integrations.transformers import NAME
from moe_kernels.layer import Experts
from moe_kernels.ops.grouped_lora import grouped_lora
from moe_kernels.ops.route import RoutingPlan
from moe_kernels.quantized import QuantizedExperts
from moe_kernels.validation import fail

# PEFT's `ParamWrapper`, once PEFT has been imported.
_wrappers: list[type] = []


def install(wrapper: Any) -> None:
    """Give PEFT's `ParamWrapper` a forward that takes the low-rank form where it is served."""
    theirs = wrapper.forward
    _wrappers.append(wrapper)

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chain = _chain(self, wrapper)
        if chain is None:
            return theirs(self, x, *args, **kwargs)
        return _forward(chain, x, *args, **kwargs)

    wrapper.forward = forward
    refuse_over_quantized(wrapper)


def _projections(experts: nn.Module) -> tuple[str, str] | None:
    """Name the parameters of the up- and the down-projection; None for a module that is left to PEFT."""
    if isinstance(experts, QuantizedExperts):
        return experts.layout.gate_up, experts.layout.down
    if isinstance(experts, Experts):
        return experts._up_name, "down_proj"
    if is_experts(experts) and experts.config._experts_implementation == NAME:  # type: ignore[union-attr]
        return recognize(experts).up, "down_proj"
    return None


class _Chain:
    """The wrappers around one expert module, outermost first: PEFT nests one for each parameter."""

    def __init__(self, wrappers: list[Any], experts: nn.Module, names: tuple[str, str]) -> None:
        self.wrappers, self.experts, self.names = wrappers, experts, names


def _chain(outer: Any, wrapper: type) -> _Chain | None:
    wrappers: list[Any] = []
    while isinstance(outer, wrapper):
        wrappers.append(outer)
        outer = outer.base_layer  # type: ignore[attr-defined]
    module: nn.Module = outer
    names = _projections(module)
    if names is None or any(w.parameter_name not in names or w.num_experts == 1 for w in wrappers):
        return None
    if any(w.merged for w in wrappers):
        return None
    return _Chain(wrappers, module, names)


def adapters(model: nn.Module) -> dict[nn.Module, str]:
    """Say of each adapted expert module which LoRA is over it, and what computes that."""
    found: dict[nn.Module, str] = {}
    for outer in model.modules():
        experts = bare(outer)
        if not isinstance(outer, tuple(_wrappers)) or experts in found:
            continue
        wrappers: Any = [outer, *(m for m in outer.modules() if isinstance(m, tuple(_wrappers)) and m is not outer)]
        ranks = {name: rank for w in wrappers for name, rank in w.r.items()}
        names = ", ".join(f"{name} (rank {rank})" for name, rank in ranks.items())
        merged = any(w.merged for w in wrappers)
        how = "merged into the weights" if merged else "in full size for every expert, by PEFT"
        if _chain(outer, _wrappers[0]) is not None:
            how = "by grouped_lora between two grouped_mm"
        found[experts] = f"LoRA {names} {how}"
    return found


def _parts(experts: nn.Module) -> Parts:
    if is_experts(experts):
        if low_bits(experts) is not None:
            widen_at_first_use(experts)
        return parts_of(experts, recognize(experts))
    if isinstance(experts, QuantizedExperts):
        layout = experts.layout
        up, down = getattr(experts, layout.gate_up).weight, getattr(experts, layout.down).weight
        up_bias = None if layout.gate_up_bias is None else getattr(experts, layout.gate_up_bias)
        down_bias = None if layout.down_bias is None else getattr(experts, layout.down_bias)
        between = _activation(layout.activation, layout.limit, up.shape[1] == 2 * down.shape[2], layout.interleaved)
        asked = (experts.dynamic, layout.batch_invariant, layout.backend)
        return Parts(up, down, up_bias, down_bias, False, between, None, *asked)
    assert isinstance(experts, Experts)
    name = experts._up_name
    between = _activation(experts.activation, None, experts.gated, False)
    up_bias, down_bias = getattr(experts, f"{name}_bias"), experts.down_proj_bias
    asked = (False, experts.batch_invariant, experts.backend)
    return Parts(getattr(experts, name), experts.down_proj, up_bias, down_bias, False, between, None, *asked)


def _activation(name: str, limit: float | None, gated: bool, interleaved: bool) -> Callable[[Tensor], Tensor]:
    """The activation of that name in torch's own operations, with autograd."""
    functional = torch.nn.functional
    curves: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
        "relu": functional.relu,
        "relu2": lambda v: functional.relu(v).square(),
    }

    def apply(pre: Tensor) -> Tensor:
        if not gated:
            return curves[name](pre)
        gate, up = split_gate_up(pre, interleaved)
        if name == "gpt_oss":
            gate, up = gate.clamp(max=GPT_OSS_LIMIT), up.clamp(-GPT_OSS_LIMIT, GPT_OSS_LIMIT)
            return (up + 1) * gate * torch.sigmoid(GPT_OSS_ALPHA * gate)
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return curves[name](gate) * up

    return apply


def _forward(
    chain: _Chain,
    hidden_states: Tensor,
    indices: Tensor,
    weights: Tensor,
    adapter_names: list[str] | None = None,
) -> Tensor:
    outer = chain.wrappers[0]
    if outer.disable_adapters:
        return chain.experts(hidden_states, indices, weights)
    parts = _parts(chain.experts)
    weights = weights_of_choices(indices, weights, parts.down.shape[0])
    dtype = hidden_states.dtype if not isinstance(parts.down, Tensor) else parts.down.dtype
    x = hidden_states.to(dtype)
    of_token = None if adapter_names is None else _adapter_of_token(outer, adapter_names, x)
    by_name = {w.parameter_name: w for w in chain.wrappers}
    options = {"batch_invariant": parts.batch_invariant, "backend": parts.backend}
    deltas = (_delta(by_name.get(name), of_token, x.dtype, options) for name in chain.names)
    given = {key: d for key, d in zip(("up_delta", "down_delta"), deltas, strict=True) if d is not None}
    return experts_in_steps(parts, x, indices, weights, **given).to(hidden_states.dtype)


def _adapter_of_token(wrapper: Any, names: list[str], x: Tensor) -> tuple[list[str], Tensor]:
    """Return the distinct adapters and each token's number among them; as many as there are for none.

    PEFT names one adapter for each sequence of the batch, and "__base__" for none.
    """
    if x.shape[0] % len(names):
        expected = f"a number of tokens that the {len(names)} sequences of adapter_names divide"
        fail("grouped_lora", "x", expected, f"{x.shape[0]} tokens")
    known = sorted(set(names) - {"__base__"})
    for name in known:
        if name not in wrapper.lora_A:
            fail("grouped_lora", "adapter_names", f"names among {sorted(wrapper.lora_A)}", repr(name))
    numbers = [known.index(name) if name in known else len(known) for name in names]
    each = x.shape[0] // len(names)
    return known, torch.tensor(numbers, dtype=torch.int32, device=x.device).repeat_interleave(each)


def _factors(wrapper: Any, adapter: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """PEFT's A (E·R, in), experts slowest, and B (out, R·E), experts fastest, as (E, R, in) and (E, out, R)."""
    A, B = wrapper.lora_A[adapter].weight.to(dtype), wrapper.lora_B[adapter].weight.to(dtype)
    E = wrapper.num_experts
    return A.view(E, -1, A.shape[1]), B.view(B.shape[0], -1, E).permute(2, 0, 1)


def _delta(
    wrapper: Any, of_token: tuple[list[str], Tensor] | None, dtype: torch.dtype, options: dict[str, Any]
) -> Delta | None:
    """The sum of a projection's active adapters; or each token's own one. `options` are those of `grouped_lora`."""
    if wrapper is None:
        return None
    if of_token is not None:
        return _mixed(wrapper, *of_token, dtype, options)
    active = [name for name in wrapper.active_adapters if name in wrapper.lora_A]
    if not active:
        return None

    def delta(rows: Tensor, plan: RoutingPlan) -> Tensor:
        groups = expert_of_row(plan)
        each = (grouped_lora(rows, *_factors(wrapper, n, dtype), groups, wrapper.scaling[n], **options) for n in active)
        return sum(each, start=next(each))

    return delta


def _mixed(
    wrapper: Any, names: list[str], of_token: Tensor, dtype: torch.dtype, options: dict[str, Any]
) -> Delta | None:
    if not names:
        return None
    E = wrapper.num_experts
    pairs = [_factors(wrapper, name, dtype) for name in names]
    widest = max(A.shape[1] for A, _ in pairs)
    pad = torch.nn.functional.pad
    A = torch.cat([pad(a, (0, 0, 0, widest - a.shape[1])) for a, _ in pairs])
    B = torch.cat([pad(b, (0, widest - b.shape[2])) for _, b in pairs])

    def per_group(values: list[float], kind: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=kind, device=A.device).repeat_interleave(E)

    scaling = per_group([wrapper.scaling[name] for name in names], torch.float32)
    ranks = per_group([a.shape[1] for a, _ in pairs], torch.int32)

    def delta(rows: Tensor, plan: RoutingPlan) -> Tensor:
        expert = expert_of_row(plan)
        adapter = of_token[plan.row_token]
        none = (expert == E) | (adapter == len(names))
        groups = torch.where(none, len(names) * E, adapter * E + expert)
        return grouped_lora(rows, A, B, groups, scaling, ranks=ranks, **options)

    return delta
