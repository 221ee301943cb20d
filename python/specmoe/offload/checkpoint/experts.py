"""Where a checkpoint keeps its experts, found by the names of its tensors.

Four ways occur: a gated MLP for each expert (Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V2 and V3, there also in
FP8 with block scales); stacks of all experts (transformers 5, our own transformer, GPT-OSS); stacks in MXFP4 (GPT-OSS);
and a plain MLP for each expert (Switch Transformers). All become the tensors that the model's expert module has in
transformers 5, of one expert.

Letters: E experts, H hidden, I intermediate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_kernels.quantized_weights import QUANTIZERS

from ..store import ExpertKey
from .files import Checkpoint, CheckpointError
from .formats import from_fp8_blocks, from_mxfp4

Read = Callable[[int], dict[str, Tensor]]
# Gate, up and down of an expert that is an MLP of its own.
GATED_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_NUMBER = re.compile(r"(\d+)")
_EXPERT = re.compile(r"(?P<group>.*\bexperts)\.(?:expert_)?(?P<expert>\d+)\.(?P<part>\w+)\.weight")
_STACK = re.compile(r"(?P<group>.*\bexperts)\.(?:gate_up_proj|up_proj)(?:_blocks)?")


@dataclass(frozen=True)
class ExpertGroup:
    """The experts of one layer.

    Args:
        name: of the module in the checkpoint, such as `model.layers.3.mlp.experts`.
        experts: E.
        read: returns the tensors of one expert.
    """

    name: str
    experts: int
    read: Read


class ExpertSource:
    """The experts of a checkpoint, in the order of its layers.

    Args:
        checkpoint: the files.
        quantize: None, "nf4" or "int8": what the matrices are turned into. A quantized matrix has its output rows
            first, whatever the checkpoint's orientation, and its biases stay as they are.

    Attributes:
        groups: the layers that have experts.
        names: of all tensors that belong to experts: what a model without its experts does not need.

    Raises:
        CheckpointError: it has no experts of a known kind.
    """

    def __init__(self, checkpoint: Checkpoint, quantize: str | None = None) -> None:
        if quantize is not None and quantize not in QUANTIZERS:
            raise ValueError(f"quantize: expected one of {sorted(QUANTIZERS)}, got {quantize!r}")
        self.checkpoint = checkpoint
        self.quantize = quantize
        found: dict[str, set[str]] = {}
        for name in checkpoint.entries:
            match = _EXPERT.fullmatch(name) or _STACK.fullmatch(name)
            if match is not None:
                found.setdefault(match["group"], set()).add(name)
        kept = [name for name in found if not self.beyond(name)]
        if not kept:
            kind = checkpoint.config.get("model_type")
            raise CheckpointError(
                f"checkpoint {checkpoint.folder}: expected experts, as MLPs of their own or stacked, found none "
                f"(model_type {kind!r})"
            )
        self.groups = [self._group(name, found[name]) for name in sorted(kept, key=_natural)]
        self.names = {name for name in checkpoint.entries if any(name.startswith(f"{g}.") for g in found)}
        self.transposed = any(g.endswith("_blocks") for g in set().union(*found.values())) or (
            checkpoint.config.get("model_type") == "gpt_oss"
        )

    @property
    def keys(self) -> list[ExpertKey]:
        """All experts, layer by layer."""
        return [ExpertKey(n, e) for n, group in enumerate(self.groups) for e in range(group.experts)]

    def expert(self, key: ExpertKey) -> dict[str, Tensor]:
        """Return one expert's tensors."""
        tensors = self.groups[key.layer].read(key.expert)
        if self.quantize is None:
            return tensors
        out: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.dim() == 1:
                out[name] = tensor
                continue
            w = tensor.t() if self.transposed else tensor
            options = {"double_quant": False} if self.quantize == "nf4" else {}
            quantized = QUANTIZERS[self.quantize](w[None], **options)
            for field, value in quantized.tensors().items():
                out[f"{name}.{field}"] = value.view(-1) if field == "absmax" else value[0]
        return out

    def _group(self, name: str, members: set[str]) -> ExpertGroup:
        entries = self.checkpoint.entries
        for suffix in ("gate_up_proj", "up_proj"):
            if f"{name}.{suffix}_blocks" in members:
                return ExpertGroup(name, entries[f"{name}.{suffix}_blocks"].shape[0], self._packed(name, suffix))
            if f"{name}.{suffix}" in members:
                return ExpertGroup(name, entries[f"{name}.{suffix}"].shape[0], self._stacked(name, suffix))
        numbers = {int(match["expert"]) for member in members if (match := _EXPERT.fullmatch(member))}
        parts = {match["part"] for member in members if (match := _EXPERT.fullmatch(member))}
        if numbers != set(range(len(numbers))):
            missing = sorted(set(range(max(numbers) + 1)) - numbers)
            raise CheckpointError(f"checkpoint {self.checkpoint.folder}: {name}: expert {missing[0]} is missing")
        for names in GATED_NAMES:
            if parts == set(names):
                return ExpertGroup(name, len(numbers), self._gated(name, names))
        if parts == {"wi", "wo"}:
            return ExpertGroup(name, len(numbers), self._plain(name))
        raise CheckpointError(
            f"checkpoint {self.checkpoint.folder}: {name}: expected the projections {GATED_NAMES[0]}, {GATED_NAMES[1]} "
            f"or wi and wo, got {sorted(parts)}"
        )

    def _gated(self, name: str, parts: tuple[str, str, str]) -> Read:
        def read(e: int) -> dict[str, Tensor]:
            gate, up, down = (self.matrix(f"{name}.{e}.{part}.weight") for part in parts)
            return {"gate_up_proj": torch.cat((gate, up)), "down_proj": down}

        return read

    def _plain(self, name: str) -> Read:
        def read(e: int) -> dict[str, Tensor]:
            up, down = (self.matrix(f"{name}.expert_{e}.{part}.weight") for part in ("wi", "wo"))
            return {"up_proj": up, "down_proj": down}

        return read

    def _stacked(self, name: str, up: str) -> Read:
        parts = [
            part
            for part in (up, f"{up}_bias", "down_proj", "down_proj_bias")
            if f"{name}.{part}" in self.checkpoint.entries
        ]

        def read(e: int) -> dict[str, Tensor]:
            return {part: self.checkpoint.read(f"{name}.{part}", e) for part in parts}

        return read

    def _packed(self, name: str, up: str) -> Read:
        def read(e: int) -> dict[str, Tensor]:
            out: dict[str, Tensor] = {}
            for part in (up, "down_proj"):
                blocks, scales = (self.checkpoint.read(f"{name}.{part}_{kind}", e) for kind in ("blocks", "scales"))
                # The module of transformers keeps the transpose.
                out[part] = from_mxfp4(blocks, scales, self.dtype).t().contiguous()
                if f"{name}.{part}_bias" in self.checkpoint.entries:
                    out[f"{part}_bias"] = self.checkpoint.read(f"{name}.{part}_bias", e)
            return out

        return read

    def beyond(self, name: str) -> bool:
        """Whether a tensor is of a layer that the model does not load, such as those that predict further tokens."""
        layers, match = self.checkpoint.config.get("num_hidden_layers"), re.search(r"\blayers\.(\d+)\.", name)
        return match is not None and isinstance(layers, int) and int(match[1]) >= layers

    @property
    def dtype(self) -> torch.dtype:
        """What numbers of few bits are turned into: the configuration's dtype, bfloat16 where it has none."""
        name = str(self.checkpoint.config.get("dtype") or self.checkpoint.config.get("torch_dtype") or "bfloat16")
        return getattr(torch, name.removeprefix("torch."), torch.bfloat16)

    def matrix(self, name: str) -> Tensor:
        """Read a matrix; one in FP8 is multiplied with its block scales.

        Raises:
            CheckpointError: it is in FP8 and has no scales.
        """
        weight = self.checkpoint.read(name)
        if weight.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
            return weight
        scale = f"{name}_scale_inv"
        if scale not in self.checkpoint.entries:
            raise CheckpointError(f"checkpoint {self.checkpoint.folder}: {name} is in FP8 and has no {scale}")
        options = self.checkpoint.config.get("quantization_config") or {}
        rows, columns = options.get("weight_block_size") or (128, 128)
        return from_fp8_blocks(weight, self.checkpoint.read(scale), (rows, columns), self.dtype)


def _natural(name: str) -> list[str | int]:
    """Sort by numbers, and an encoder, which runs first, before its decoder."""
    return ["decoder." in name, *(int(part) if part.isdigit() else part for part in _NUMBER.split(name))]
