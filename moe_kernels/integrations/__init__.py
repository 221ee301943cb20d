"""Hooks into other libraries. Nothing here imports one of them unless the program has already done so."""

from moe_kernels.integrations.explain import explain
from moe_kernels.integrations.patch import patch

__all__ = ["explain", "patch", "register_when_imported"]


def register_when_imported() -> None:
    """Hook into transformers and PEFT: at once where they are imported, else when they are."""
    from moe_kernels.integrations import peft, transformers

    transformers.register_when_imported()
    peft.register_when_imported()
