"""The MoE blocks of transformers 4.57, which keep each expert as an MLP of its own, with stacked weights.

Which blocks these are is found by asking. A block that has a list of gated MLPs is given random tokens, and what it
returns is compared with what the known rules would: a softmax over a linear gate, with or without normalized weights
and a gated shared expert (Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, …), or a method `moe(x, indices, weights)`
(DeepSeek-V3, GLM-4-MoE, …). Nothing is changed before every block of a model is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_kernels.integrations.recognition import plain_activation
from moe_kernels.layer import Experts

# Gate, up and down projections of an expert.
NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
# Relative RMS distance of the same sums in another order.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
TOKENS = 8

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]


class StackedExperts(Experts):
    """Experts with stacked weights, whose state_dict has the names and shapes of the MLPs that they were.

    So what `save_pretrained` writes is a checkpoint like the one that was loaded.
    """

    def __init__(self, experts: nn.ModuleList, names: tuple[str, str, str], activation: str) -> None:
        weights = [[getattr(expert, name).weight for expert in experts] for name in names]
        first = weights[0][0]
        super().__init__(
            first.shape[1],
            first.shape[0],
            len(experts),
            activation=activation,
            gated=True,
            bias=False,
            batch_invariant=None,
            backend=None,
            device="meta",
            dtype=first.dtype,
        )
        self.names = names
        gate_up = torch.stack([torch.cat(pair) for pair in zip(*weights[:2], strict=True)])
        self.gate_up_proj = nn.Parameter(gate_up, first.requires_grad)
        self.down_proj = nn.Parameter(torch.stack(weights[2]), weights[2][0].requires_grad)
        self.train(experts.training)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        gate_up, down = (p if keep_vars else p.detach() for p in (self.gate_up_proj, self.down_proj))
        for e in range(len(down)):
            parts = (*gate_up[e].chunk(2), down[e])
            for name, part in zip(self.names, parts, strict=True):
                destination[f"{prefix}{e}.{name}.weight"] = part

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any, **options: Any) -> None:
        keys = [[f"{prefix}{e}.{name}.weight" for name in self.names] for e in range(len(self.down_proj))]
        if all(key in state_dict for expert in keys for key in expert):
            parts = [[state_dict.pop(key) for key in expert] for expert in keys]
            state_dict[f"{prefix}gate_up_proj"] = torch.stack([torch.cat(expert[:2]) for expert in parts])
            state_dict[f"{prefix}down_proj"] = torch.stack([expert[2] for expert in parts])
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)


class Block(NamedTuple):
    """What was found out about a block: the names of its experts' projections, their activation, and its rule."""

    module: nn.Module
    names: tuple[str, str, str]
    activation: str
    rule: str


def _softmax_block(block: Any, hidden_states: Tensor, experts: Compute, renormalize: bool) -> tuple[Tensor, Tensor]:
    if block.training and getattr(block, "jitter_noise", 0) > 0:
        noise = torch.empty_like(hidden_states).uniform_(1 - block.jitter_noise, 1 + block.jitter_noise)
        hidden_states = hidden_states * noise
    x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
    logits_TE = block.gate(x_TH)
    weights_TK, indices_TK = torch.softmax(logits_TE, 1, dtype=torch.float32).topk(block.top_k, 1)
    if renormalize:
        weights_TK = weights_TK / weights_TK.sum(1, keepdim=True)
    out_TH = experts(x_TH, indices_TK, weights_TK.to(x_TH.dtype))
    if hasattr(block, "shared_expert"):
        out_TH = out_TH + torch.sigmoid(block.shared_expert_gate(x_TH)) * block.shared_expert(x_TH)
    return out_TH.reshape(hidden_states.shape), logits_TE


def _forward_renormalized(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    return _softmax_block(self, hidden_states, self.experts, True)


def _forward(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    return _softmax_block(self, hidden_states, self.experts, False)


def _moe(self: Any, hidden_states: Tensor, topk_indices: Tensor, topk_weights: Tensor) -> Tensor:
    return self.experts(hidden_states, topk_indices, topk_weights)


# Each rule: the method of the block that it replaces, and by what.
RULES: dict[str, tuple[str, Any]] = {
    "moe": ("moe", _moe),
    "renormalized": ("forward", _forward_renormalized),
    "softmax": ("forward", _forward),
}


def _loop(experts: nn.ModuleList) -> Compute:
    def compute(x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        out_TH = torch.zeros_like(x_TH)
        for e, expert in enumerate(experts):
            tokens, slots = torch.where(indices_TK == e)
            out_TH.index_add_(0, tokens, (expert(x_TH[tokens]) * weights_TK[tokens, slots, None]).to(out_TH.dtype))
        return out_TH

    return compute


def _close(got: Tensor, want: Tensor) -> bool:
    distance = torch.linalg.vector_norm(got.double() - want.double())
    return bool(distance <= CLOSE[want.dtype] * torch.linalg.vector_norm(want.double()))


def _projections(expert: nn.Module) -> tuple[str, str, str] | None:
    return next((names for names in NAMES if all(type(getattr(expert, n, None)) is nn.Linear for n in names)), None)


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module, nn.ModuleList]]:
    """Blocks with a list of experts that look alike, each with gate, up and down."""
    found = []
    for path, module in model.named_modules():
        experts = getattr(module, "experts", None)
        if isinstance(experts, nn.ModuleList) and len(experts) and _projections(experts[0]) is not None:
            found.append((path, module, experts))
    return found


def _check(path: str, experts: nn.ModuleList) -> tuple[tuple[str, str, str], str]:
    """Return the projections' names and the activation of experts that can be stacked."""
    first = experts[0]
    names = _projections(first)
    assert names is not None
    wanted = [getattr(first, n).weight for n in names]
    for e, expert in enumerate(experts):
        if type(expert) is not type(first) or _projections(expert) != names:
            raise ValueError(
                f"patch: {path}.experts.{e}: expected a {type(first).__name__}, got {type(expert).__name__}"
            )
        for name, like in zip(names, wanted, strict=True):
            linear = getattr(expert, name)
            if linear.bias is not None:
                raise ValueError(f"patch: {path}.experts.{e}.{name}: experts with biases are not known")
            same = (linear.weight.shape, linear.weight.dtype, linear.weight.device) == (
                like.shape,
                like.dtype,
                like.device,
            )
            if not same or linear.weight.is_meta:
                raise ValueError(f"patch: {path}.experts.{e}.{name}: expected a weight like that of the first expert")
            if linear.weight.requires_grad != like.requires_grad:
                raise ValueError(
                    f"patch: {path}.experts.{e}.{name}: expected requires_grad={like.requires_grad} as in the first "
                    f"expert, got {linear.weight.requires_grad}: a stacked weight is frozen as a whole or not at all"
                )
    if wanted[0].requires_grad != wanted[1].requires_grad:
        frozen, other = names[:2] if not wanted[0].requires_grad else names[1::-1]
        raise ValueError(f"patch: {path}.experts: expected {frozen} and {other} frozen together, got {frozen} alone")
    if wanted[0].dtype not in CLOSE:
        raise ValueError(f"patch: {path}.experts: {wanted[0].dtype} is not known")
    act_fn = getattr(first, "act_fn", None)
    activation = None if act_fn is None else plain_activation(act_fn)
    x = _tokens(wanted[0])
    if activation is not None:
        gate, up, down = (getattr(first, n) for n in names)
        if _close(down(act_fn(gate(x)) * up(x)), first(x)):  # type: ignore[misc]
            return names, activation
    raise ValueError(f"patch: {path}.experts: {type(first).__name__} computes none of the kernels' activations")


def _tokens(like: Tensor) -> Tensor:
    """Draw tokens (T, H) for a weight (I, H)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(TOKENS, like.shape[1], generator=generator, device="cpu").to(like.device, like.dtype)


def _rule(block: Any, experts: nn.ModuleList, x_TH: Tensor) -> str | None:
    """Name the rule by which the block computes, having tried it; None if it is none of them."""
    if hasattr(block, "moe"):
        indices = torch.arange(TOKENS * 2, device=x_TH.device).reshape(TOKENS, 2) % len(experts)
        weights = torch.rand(TOKENS, 2, device=x_TH.device, generator=torch.Generator(x_TH.device).manual_seed(0))
        weights = weights.to(x_TH.dtype)
        if _close(_loop(experts)(x_TH, indices, weights), block.moe(x_TH, indices, weights)):
            return "moe"
    elif isinstance(getattr(block, "gate", None), nn.Linear) and isinstance(getattr(block, "top_k", None), int):
        want = block(x_TH[None])
        if isinstance(want, tuple) and len(want) == 2:
            for name, renormalize in (("renormalized", True), ("softmax", False)):
                got = _softmax_block(block, x_TH[None], _loop(experts), renormalize)
                if got[1].shape == want[1].shape and _close(got[0], want[0]) and _close(got[1], want[1]):
                    return name
    return None


@torch.no_grad()
def find_blocks(model: nn.Module) -> list[Block]:
    """Find out how each block of a model computes.

    Raises:
        ValueError: a block has a list of expert MLPs, and computes something else.
    """
    blocks = []
    for path, module, experts in _candidates(model):
        names, activation = _check(path, experts)
        if "forward" in module.__dict__:
            raise ValueError(f"patch: {path}: its forward has been replaced by something else already")
        training = module.training
        # Noise belongs to training.
        module.eval()
        try:
            rule = _rule(module, experts, _tokens(getattr(experts[0], names[0]).weight))
        # It was called in a way that is not its own.
        except (TypeError, RuntimeError, AttributeError, IndexError):
            rule = None
        finally:
            module.train(training)
        if rule is None:
            raise ValueError(f"patch: {path}: what {type(module).__name__} does with its experts is not known")
        blocks.append(Block(module, names, activation, rule))
    return blocks


@torch.no_grad()
def stack(blocks: list[Block]) -> None:
    """Replace each block's experts by one module, one block at a time: more memory than one block's is not needed."""
    for block in blocks:
        block.module.experts = StackedExperts(block.module.experts, block.names, block.activation)  # type: ignore[arg-type]
        method, function = RULES[block.rule]
        # As in routers.py: a bound method could not be pickled.
        setattr(block.module, method, partial(function, block.module))
