"""`explain`: what computes the experts of a model, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_kernels.integrations.low_bits import in_the_order_of_a_kernel, low_bits
from moe_kernels.integrations.recognition import is_experts, recognize
from moe_kernels.integrations.routers import Rule, computes_topk_gating, router_rule, routers
from moe_kernels.integrations.transformers import NAME
from moe_kernels.layer import Experts
from moe_kernels.quantized.experts import QuantizedExperts
from moe_kernels.registry import BackendUnavailable, choose


class Explanation(NamedTuple):
    """One expert module.

    Attributes:
        path: its name in the model.
        module: its class's name.
        implementation: what transformers' configuration names, or None where transformers has no say.
        computed: what this package computes it with, once it does.
        reason: why it is not one fused op; empty where it is.
        backend: which backend serves it, or why none does.
        router: what computes the router beside it; empty where there is none of a known kind.
        adapters: the LoRA over it, and what computes that; empty where there is none.
    """

    path: str
    module: str
    implementation: str | None
    computed: str
    reason: str
    backend: str
    router: str = ""
    adapters: str = ""

    def __str__(self) -> str:
        text = f"{self.path} ({self.module}): {self.computed}, backend {self.backend}"
        if self.reason:
            text += f"; {self.reason}"
        if self.adapters:
            text += f"; {self.adapters}"
        if self.router:
            text += f"; router: {self.router}"
        if self.implementation not in (None, NAME):
            text += f"; NOT USED: experts_implementation is {self.implementation!r}, moe_kernels.patch(model) sets it"
        return text


def _backend(op: str, forced: str | None, *weights: object) -> str:
    tensors = [w for w in weights if isinstance(w, Tensor)]
    if len(tensors) < len(weights):
        return f"none: its weights are {type(weights[0]).__name__}"
    if tensors[0].is_meta:
        return "not known yet: the weights are on the meta device"
    try:
        return choose(op, forced, *tensors)
    except BackendUnavailable as error:
        return f"none: {error}"


def _of_transformers(path: str, module: nn.Module) -> Explanation:
    found = recognize(module)
    up, down = getattr(module, found.up), module.down_proj
    layout = [word for word, said in (("transposed", found.transposed), ("interleaved", found.interleaved)) if said]
    layout += ["biases"] if module.has_bias else []
    how = f" ({', '.join(layout)})" if layout else ""
    if found.activation is not None and not found.post_norm:
        clamped = "" if found.limit is None else f" clamped at {found.limit:g}"
        op, computed = "fused_experts", f"fused_experts, {found.activation}{clamped}{how}"
    else:
        op, computed = "grouped_mm", f"two grouped_mm{how} with the model's own function"
    if getattr(module, "_is_expert_parallel", False):
        computed += f", {module.num_experts} experts of this rank"
    name: str | None = module.config._experts_implementation  # type: ignore[union-attr, assignment]
    kind = low_bits(module)
    if kind is not None:
        # The dtype that they get is found by the registry as it would be for the module's own.
        up = down = torch.empty(0, dtype=torch.bfloat16, device=down.device)  # type: ignore[arg-type]
        low = f"its {kind} weights are converted at the first use, or before by patch or quantize_experts"
        found = found._replace(reason="; ".join(filter(None, (found.reason, low))))
    return Explanation(path, type(module).__name__, name, computed, found.reason, _backend(op, None, up, down))


def _router(router: nn.Module) -> str:
    rule = router_rule(router)
    if not isinstance(rule, Rule):
        return f"its own; {rule}"
    return f"{'topk_gating' if computes_topk_gating(router) else 'its own'}, {rule}"


def _of_ours(path: str, module: Experts | QuantizedExperts) -> Explanation:
    name = type(module).__name__
    if isinstance(module, QuantizedExperts):
        layout = module.layout
        weights = [getattr(module, projection).weight.tensors() for projection in (layout.gate_up, layout.down)]
        tensors = [value for named in weights for value in named.values()]
        backend = _backend("fused_experts_quantized", layout.backend, *tensors)
        return Explanation(path, name, None, f"fused_experts, {layout.activation}, {module.format}", "", backend)
    backend = _backend("fused_experts", module.backend, getattr(module, module._up_name), module.down_proj)
    return Explanation(path, name, None, f"fused_experts, {module.activation}", "", backend)


def explain(model: nn.Module) -> list[Explanation]:
    """Print, and return, what computes each expert module of a model.

    Args:
        model: a model of transformers 5, or any module with this package's layers in it.
    """
    # Only now: it brings torch.compile along.
    from moe_kernels.integrations.lora import adapters

    found = []
    beside = {path.rpartition(".")[0]: router for path, router in routers(model)}
    over = adapters(model)
    for path, module in model.named_modules():
        if is_experts(module):
            router = beside.get(path.replace(".base_layer", "").rpartition(".")[0])
            explanation = _of_transformers(path, module)
            explanation = explanation._replace(router="" if router is None else _router(router))
        elif isinstance(module, (Experts, QuantizedExperts)):
            explanation = _of_ours(path, module)
        else:
            continue
        shards = getattr(model.get_submodule(path.rpartition(".")[0]), "expert_shards", None)
        if shards is not None:
            explanation = explanation._replace(computed=f"{explanation.computed}, {shards}")
        found.append(explanation._replace(adapters=over.get(module, "")))
    for path in in_the_order_of_a_kernel(model):
        computed = "MXFP4 by transformers' own kernel"
        reason = "load with quantization_config=Mxfp4Config(dequantize=True) to use these kernels"
        found.append(Explanation(path, type(model.get_submodule(path)).__name__, None, computed, reason, "none"))
    for explanation in found:
        print(explanation)
    if not found:
        lists = [p for p, m in model.named_modules() if isinstance(getattr(m, "experts", None), nn.ModuleList)]
        hint = f"; {lists[0]} and {len(lists) - 1} more have lists of experts: see moe_kernels.patch" if lists else ""
        print(f"{type(model).__name__} has no experts of a known kind{hint}")
    return found
