"""`experts_implementation="moe_kernels"` for the models of transformers 5."""

from __future__ import annotations

from types import ModuleType

from moe_kernels.integrations.when_imported import when_imported

NAME = "moe_kernels"


def _register(module: ModuleType) -> None:
    interface = getattr(module, "ExpertsInterface", None)
    # transformers 4 has no interface.
    if interface is None:
        return
    # Only now: what this imports brings torch.compile along, which takes a second.
    from moe_kernels.integrations.experts import experts_forward
    from moe_kernels.integrations.layouts import experts_layout
    from moe_kernels.quantized import register_experts

    interface.register(NAME, experts_forward)
    register_experts(experts_layout)


def _register_low_bits(module: ModuleType) -> None:
    interface = getattr(module, "FP8ExpertsInterface", None)
    if interface is None:
        return
    from moe_kernels.integrations.experts import low_bits_forward

    interface.register(NAME, low_bits_forward)


def register_when_imported() -> None:
    """Make the name known to transformers: at once where it is imported, else when it is."""
    when_imported("transformers.integrations.moe", _register)
    when_imported("transformers.integrations.finegrained_fp8", _register_low_bits)
