"""What a step needs of a transformers model: its own modules, so that adapters and quantized weights stay in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_kernels.ops.bound_linear import is_plain

Map = Callable[[Tensor], Tensor]


@runtime_checkable
class Bindable(Protocol):
    """A module that knows a faster form of itself for a batch that is continued."""

    def bound(self, rows: int) -> Map | None:
        """Returns what takes (rows, in) in its place for one generation, None where there is none."""
        ...


# By `config.model_type`; both are tested against transformers' own forward.
KNOWN = ("gemma3_text", "qwen2")
# Rotary embeddings whose frequencies depend on how long the text is by now: a table made once does not have them.
_GROWING = ("dynamic", "longrope")


@dataclass(frozen=True)
class Norm:
    """RMSNorm (Zhang and Sennrich 2019), with the roundings of the module that it stands for.

    Args:
        weight: (D,) what the normalized values are multiplied by, or the last dimension of them.
        eps: what is added to the mean square.
        rounds_first: whether the normalized values are rounded to their dtype before they are multiplied.
    """

    weight: Tensor
    eps: float
    rounds_first: bool

    def __call__(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """Returns x (..., D) normalized, on top of `base` where there is one."""
        normalized = self._normalized(x)
        return normalized if base is None else base + normalized

    def _normalized(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and not self.rounds_first:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        if self.rounds_first:
            return F.rms_norm(x, self.weight.shape, None, self.eps).mul_(self.weight)
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


@dataclass(frozen=True)
class Layer:
    """One block: attention and MLP, each with a residual around it. A norm that the family lacks is None."""

    before_attention: Norm
    q: Map
    k: Map
    v: Map
    o: Map
    query_norm: Norm | None
    key_norm: Norm | None
    after_attention: Norm | None
    before_mlp: Norm
    gate: Map
    up: Map
    down: Map
    act: Map
    after_mlp: Norm | None
    scaling: float
    # How many tokens back are seen, itself included; None for all.
    window: int | None
    # What the rotary embedding of this kind of layer is called.
    kind: str


@dataclass(frozen=True)
class Network:
    """A causal model, read for one generation.

    Args:
        embed, norm, head: before and after the layers.
        layers: the blocks.
        heads, key_heads, head_size: of the attention; each key head serves `heads / key_heads` queries in a row.
        rotary: from (positions (S,), kind) to cos and sin (S, head_size) in the model's dtype.
    """

    embed: Map
    norm: Norm
    head: Map
    layers: tuple[Layer, ...]
    heads: int
    key_heads: int
    head_size: int
    rotary: Callable[[Tensor, str], tuple[Tensor, Tensor]]


def read(model: Any) -> Network | None:
    """Returns the network of a model of transformers, None where only transformers itself can run it."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in KNOWN or model.training or not hasattr(model, "lm_head"):
        return None
    gemma = config.model_type == "gemma3_text"
    if gemma and (
        config.use_bidirectional_attention or config.final_logit_softcapping or config.attn_logit_softcapping
    ):
        return None
    if any(kind in _GROWING for kind in _rope_types(config.rope_parameters)):
        return None
    # Hooks around modules that a step does not call, or that expect (B, S, features); accelerate's move weights.
    if not all(is_plain(module) and not hasattr(module, "_hf_hook") for module in model.modules()):
        return None
    if not _as_published(model) or config._attn_implementation not in ("sdpa", "eager"):
        return None
    inner = model.model
    like = torch.empty(0, dtype=model.dtype, device=model.device)

    def rotary(positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        given = (like, positions[None], kind) if gemma else (like, positions[None])
        cos, sin = inner.rotary_emb(*given)
        return cos[0], sin[0]

    return Network(
        inner.embed_tokens, _norm(inner.norm, gemma), model.lm_head,
        tuple(_layer(layer, gemma) for layer in inner.layers),
        config.num_attention_heads, config.num_key_value_heads, inner.layers[0].self_attn.head_dim, rotary,
    )  # fmt: skip


def _as_published(model: Any) -> bool:
    """Whether all but the linear layers and embeddings are transformers' own, and nobody's replacement or wrapper."""
    if not _of_transformers(model):
        return False
    modules = [model.model, model.model.rotary_emb, model.model.norm]
    for layer in model.model.layers:
        modules += [layer, layer.self_attn, layer.mlp, *(m for n, m in layer.named_modules() if n.endswith("norm"))]
        modules.append(getattr(layer.mlp, "act_fn", layer.mlp))
    return all(_of_transformers(module) for module in modules)


def _of_transformers(module: Any) -> bool:
    # Some of its activations are torch's.
    return type(module).__module__.startswith(("transformers.", "torch.nn."))


def _rope_types(parameters: Any) -> list[str]:
    """Returns the types of rotary embedding, of one for all layers or of one for each kind of layer."""
    each = parameters.values() if all(isinstance(value, dict) for value in parameters.values()) else [parameters]
    return [str(told.get("rope_type", "default")) for told in each]


def _layer(layer: Any, gemma: bool) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms: dict[str, Any] = {
        "query_norm": _norm(attention.q_norm, gemma) if gemma else None,
        "key_norm": _norm(attention.k_norm, gemma) if gemma else None,
        "after_attention": _norm(layer.post_attention_layernorm, gemma) if gemma else None,
        "before_mlp": _norm(layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm, gemma),
        "after_mlp": _norm(layer.post_feedforward_layernorm, gemma) if gemma else None,
    }
    return Layer(
        before_attention=_norm(layer.input_layernorm, gemma),
        q=attention.q_proj, k=attention.k_proj, v=attention.v_proj, o=attention.o_proj,
        gate=mlp.gate_proj, up=mlp.up_proj, down=mlp.down_proj, act=mlp.act_fn,
        scaling=attention.scaling, window=attention.sliding_window, kind=attention.layer_type or "", **norms,
    )  # fmt: skip


def _norm(module: Any, gemma: bool) -> Norm:
    """Gemma multiplies by one more than its weight, in float32; Qwen by its weight, after rounding."""
    if gemma:
        return Norm(1.0 + module.weight.detach().float(), module.eps, rounds_first=False)
    return Norm(module.weight.detach(), module.variance_epsilon, rounds_first=True)
