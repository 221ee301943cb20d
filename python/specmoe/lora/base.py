"""The frozen base that all adapters share: a model, its tokenizer, and a digest by which adapters know it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from ..training.checkpoints import MANIFEST, verify
from ..training.run_state import quiet_progress_bars

# The projections of a transformer block that get an adapter.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Base:
    """A frozen model.

    Attributes:
        model: a causal language model of transformers, in evaluation mode, without gradients.
        tokenizer: its tokenizer, with a padding token.
        name: the path or hub name that it came from.
        digest: of its weights as they are stored; see `digest_of`.
    """

    model: Any
    tokenizer: Any
    name: str
    digest: str

    def to(self, dtype: torch.dtype) -> Base:
        """Turns the weights into another dtype, in place; the digest stays that of the stored ones."""
        self.model.to(dtype)
        return self


def fastest_dtype() -> torch.dtype:
    """Returns bfloat16 where this machine multiplies in it, otherwise float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # torch knows, and has no public name for it.
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return torch.bfloat16 if any(ask is not None and ask() for ask in asked) else torch.float32


def load_base(source: str | Path, dtype: torch.dtype = torch.float32, targets: Iterable[str] = TARGETS) -> Base:
    """Returns the model of a folder or of the hub; quantized weights are dequantized.

    Args:
        source: a folder or a hub name.
        dtype: what its weights are turned into.
        targets: names that linear layers must have.

    Raises:
        ValueError: it cannot be loaded, or has no layer of one of these names.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(source).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else str(source)
    if (folder / MANIFEST).is_file():
        verify(folder)
    model: Any
    with quiet_progress_bars():
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"base: {source}: not loaded: {error}") from error
    check_targets(model, targets, name)
    digest = digest_of(model)
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
        # How it was stored quantized, which transformers would try to do again when it saves the model.
        model._weight_conversions = None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model.to(dtype).eval().requires_grad_(False), tokenizer, name, digest)


def check_targets(model: Any, targets: Iterable[str], name: str) -> None:
    """Checks that a model has linear layers of every one of these names.

    Raises:
        ValueError: it has not; the message names what is missing and what linear layers there are.
    """
    found = {path.rpartition(".")[2] for path, module in model.named_modules() if hasattr(module, "in_features")}
    if missing := [target for target in targets if target not in found]:
        there = ", ".join(sorted(found)) or "none"
        raise ValueError(f"base: {name}: expected linear layers named {', '.join(missing)}, found {there}")


def digest_of(model: Any) -> str:
    """Returns a digest of every parameter's name, shape, dtype and bytes."""
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
