"""A family of very small untrained specialists on one base in NF4."""

from __future__ import annotations

import torch
from tiny_base import save_tiny

from specmoe.lora.adapters import new_adapter, read_adapter, write_adapter
from specmoe.lora.base import TARGETS
from specmoe.specialists.bases import load_quantized, quantize_base

NAMES = ("coordinator", "ascii", "runic")


def save_family(folder, names=NAMES, spread=0.2):
    """Writes a base in NF4 and a random adapter for each name, and returns the folder."""
    save_tiny(folder / "base")
    quantize_base(folder / "base", folder / "base-nf4")
    base = load_quantized(folder / "base-nf4")
    for number, name in enumerate(names):
        model = new_adapter(base, 4, 8, 0.0, number, TARGETS)
        torch.manual_seed(number)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(0, spread)
        model.save_pretrained(folder / name / "made")
        base = type(base)(model.unload(), base.tokenizer, base.name, base.digest)
        write_adapter(read_adapter(folder / name / "made", name, base), folder / name / "model", base)
    return folder


def save_other_bases(folder, names=NAMES):
    """Writes a base of its own for each name, without adapters, and returns the folder."""
    for number, name in enumerate(names):
        save_tiny(folder / name / "full", seed=number)
        quantize_base(folder / name / "full", folder / name / "nf4")
        (folder / name / "specialist.json").write_text('{"base": "nf4"}')
    return folder
