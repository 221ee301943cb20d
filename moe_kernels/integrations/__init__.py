"""Hooks into other libraries. Nothing here imports one of them unless the program has already done so."""

from moe_kernels.integrations.explain import explain
from moe_kernels.integrations.patch import patch
from moe_kernels.integrations.transformers import register_when_imported

__all__ = ["explain", "patch", "register_when_imported"]
