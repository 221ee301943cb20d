"""`patch`: these kernels in a model of transformers that is already there, whatever the version.

- From 5.6 on, `model.set_experts_implementation("moe_kernels")`, and `patch` is the same.
- 5.0 to 5.5 have the interface, but accept no names other than their own: the name is written into the configuration.
- 4.57 has no interface: each block's experts are stacked (`stacked.py`).
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from moe_kernels.integrations.layouts import check_layout
from moe_kernels.integrations.low_bits import to_widen, widen_all
from moe_kernels.integrations.recognition import is_experts
from moe_kernels.integrations.routers import use_topk_gating
from moe_kernels.integrations.stacked import find_blocks, stack
from moe_kernels.integrations.transformers import NAME
from moe_kernels.layer import Experts
from moe_kernels.quantized import QuantizedExperts

Model = TypeVar("Model", bound=nn.Module)


def patch(model: Model, *, routers: bool = False) -> Model:
    """Let a model of transformers compute its experts with these kernels.

    With transformers 4.57 the experts of each block become one module with stacked weights, named as in transformers 5.
    Experts that transformers keeps in FP8 are turned into the model's dtype, with a warning.
    Patching twice does no harm.

    Args:
        model: a model of transformers 4.57 or 5; or a module that contains one.
        routers: with transformers 5, let `topk_gating` compute the routers whose rule it knows, too. On a CPU it is not
            faster than what the models do (docs/performance.md). A token's experts may come in another order.

    Returns:
        The same model.

    Raises:
        ValueError: it has no experts of a known kind, or a block computes something else than is known, or the shapes
            of an expert module's weights do not belong together in its layout, or its experts are in MXFP4 in the order
            of another kernel. It is then as it was.
        RuntimeError: transformers does not let its experts' implementation be changed. It is then as it was.
    """
    experts = {path: module for path, module in model.named_modules() if is_experts(module)}
    for path, module in experts.items():
        check_layout("patch", path, module)
    in_low_bits = to_widen(model)
    if experts:
        # transformers may refuse, and the model is to be as it was then.
        _name_it(model, list(experts.values()))
        widen_all(model, in_low_bits)
        if routers:
            use_topk_gating(model)
        return model
    blocks = find_blocks(model)
    if not blocks and not any(isinstance(module, (Experts, QuantizedExperts)) for module in model.modules()):
        raise ValueError(
            f"patch: {type(model).__name__} has no experts of a known kind: neither modules behind transformers' "
            "experts interface nor blocks with a list of gated expert MLPs"
        )
    stack(blocks)
    return model


def _name_it(model: nn.Module, experts: list[nn.Module]) -> None:
    setter = getattr(model, "set_experts_implementation", None)
    if setter is not None:
        try:
            setter(NAME)
        except ValueError as error:
            # 5.0 to 5.5. Any other reason is the caller's to know.
            if "experts_implementation" not in str(error):
                raise
    for module in experts:
        # What the module's forward reads. It is already so unless the name was refused, or the model is wrapped.
        module.config._experts_implementation_internal = NAME  # type: ignore[union-attr]
