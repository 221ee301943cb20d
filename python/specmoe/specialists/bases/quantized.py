"""A base in NF4 on disk: written once, opened without its weights in full precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ...lora.base import TARGETS, Base, check_targets
from ...offload.checkpoint.files import Checkpoint
from ...training.checkpoints import MANIFEST, publish, verify
from ...training.errors import CheckpointError
from ...training.run_state import quiet_progress_bars
from .packing import keep_output_in_place, keep_unpacked


def nf4_config(compute: torch.dtype) -> Any:
    """Returns transformers' settings for NF4 with double quantization.

    Args:
        compute: the dtype of the products.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(f"base: expected bitsandbytes (pip install 'moe-kernels[quant]'), got {error}") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def quantize_base(source: str | Path, folder: Path) -> Path:
    """Writes a model in NF4 with its tokenizer; embeddings, norms and the output layer keep their dtype.

    Args:
        source: a folder or a hub name; its weights are in float32 or bfloat16.
        folder: where to; what was there is replaced as a whole.

    Returns:
        The folder.

    Raises:
        ValueError: the model cannot be loaded, or has no layer of one of the names that adapters need.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = Path(source).expanduser()
    name = str(place.resolve()) if place.is_dir() else str(source)
    try:
        with quiet_progress_bars():
            dtype = getattr(AutoConfig.from_pretrained(name), "dtype", None) or torch.float32
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, quantization_config=nf4_config(dtype))
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"base: {source}: not loaded: {error}") from error
    check_targets(model, TARGETS, name)
    keep_unpacked(model)

    def fill(target: Path) -> None:
        with quiet_progress_bars():
            model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    return publish(folder.parent, folder.name, fill)


def load_quantized(folder: Path, device: str = "cpu") -> Base:
    """Opens a base that `quantize_base` wrote: each weight is read as the 4 bits that it is stored in.

    Args:
        folder: the folder.
        device: torch's name of a device.

    Returns:
        The base, in evaluation mode, without gradients; its weights stay as they are stored, see `keep_unpacked`.

    Raises:
        ValueError: bitsandbytes is not installed.
        CheckpointError: a file is missing or damaged, or the folder holds a model that is not quantized.
    """
    import transformers

    folder = folder.expanduser()
    digest = quantized_digest(folder)
    verify(folder)
    stored = Checkpoint(folder)
    if "quantization_config" not in stored.config:
        raise CheckpointError(f"base: {folder}: expected a model in NF4, found one that is not quantized")
    nf4_config(torch.float32)
    # Given the files, transformers maps them, and what is mapped stays in memory beside what is made of it.
    weights = {name: stored.read(name) for name in stored.entries}
    kind = getattr(transformers, stored.config["architectures"][0])
    with quiet_progress_bars():
        config = transformers.AutoConfig.from_pretrained(folder)
        model: Any = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype="auto", device_map={"": device}
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    keep_output_in_place(keep_unpacked(model))
    return Base(model.eval().requires_grad_(False), tokenizer, str(folder.resolve()), digest)


def quantized_digest(folder: Path) -> str:
    """Returns the digest of a base in NF4 from its manifest, without reading its weights.

    Raises:
        CheckpointError: there is none.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"base: {folder}: expected a base in NF4, found no {MANIFEST}")
    files = json.loads(manifest.read_text())["files"]
    # The weights' own digests: a tokenizer or a library version written beside them does not make another base.
    return "-".join(told["sha256"][:32] for name, told in sorted(files.items()) if name.endswith(".safetensors"))
