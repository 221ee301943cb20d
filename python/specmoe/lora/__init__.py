"""LoRA experts: one frozen base, an adapter for each domain, and batches whose rows have adapters of their own.

`AdapterBank` puts adapters that PEFT has saved onto a model, `LoraSystem` adds a router, `train_adapter` makes them.
"""

from .adapters import Adapter, read_adapter, write_adapter
from .bank import AdapterBank
from .base import Base, load_base
from .settings import AdapterSettings
from .system import LoraSystem, find_adapters
from .train import AdapterReport, train_adapter

__all__ = [
    "Adapter",
    "AdapterBank",
    "AdapterReport",
    "AdapterSettings",
    "Base",
    "LoraSystem",
    "find_adapters",
    "load_base",
    "read_adapter",
    "train_adapter",
    "write_adapter",
]
