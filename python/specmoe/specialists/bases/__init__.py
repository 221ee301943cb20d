"""Quantized bases: `quantize_base("Qwen/...", folder)` writes one in NF4, `load_quantized(folder)` opens it."""

from __future__ import annotations

from .packing import keep_unpacked
from .quantized import load_quantized, nf4_config, quantize_base, quantized_digest

__all__ = ["keep_unpacked", "load_quantized", "nf4_config", "quantize_base", "quantized_digest"]
