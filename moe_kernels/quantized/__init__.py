"""Experts whose weights are NF4 or int8: made from a model, used by the ops, kept in files."""

from moe_kernels.quantized.experts import ExpertsLayout, Packed, QuantizedExperts, quantize_experts, register_experts
from moe_kernels.quantized.files import load_quantized, save_quantized
from moe_kernels.quantized_weights import Int8Weight, Nf4Weight, QuantizedWeight, quantize_int8, quantize_nf4

__all__ = [
    "ExpertsLayout",
    "Int8Weight",
    "Nf4Weight",
    "Packed",
    "QuantizedExperts",
    "QuantizedWeight",
    "load_quantized",
    "quantize_experts",
    "quantize_int8",
    "quantize_nf4",
    "register_experts",
    "save_quantized",
]
