"""LoRA on experts in low-rank form, wherever PEFT is used."""

from __future__ import annotations

from types import ModuleType

from moe_kernels.integrations.when_imported import when_imported


def _install(module: ModuleType) -> None:
    # PEFT before 0.17 adapts no parameters.
    if hasattr(module, "ParamWrapper"):
        from moe_kernels.integrations.lora import install

        install(module.ParamWrapper)


def register_when_imported() -> None:
    """Put the low-rank form into PEFT: at once where it is imported, else when it is."""
    when_imported("peft.tuners.lora.layer", _install)
