"""MoELayer: the drop-in Mixture-of-Experts block.

Letters: T tokens, E experts, K experts per token, H hidden, I intermediate.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_kernels.capacity import DROP_POLICIES, drop_over_capacity, expert_choice
from moe_kernels.losses import load_balance_loss, reduce_statistics
from moe_kernels.ops.fused_experts import fused_experts
from moe_kernels.ops.grouped_mm import grouped_mm
from moe_kernels.ops.topk_gating import TopKGating, topk_gating
from moe_kernels.parallel.checkpoint import own_part, remember_range
from moe_kernels.parallel.dispatch import expert_parallel
from moe_kernels.parallel.parameters import draw
from moe_kernels.parallel.shards import ExpertShards, Group
from moe_kernels.validation import GATED_ACTIVATIONS, PLAIN_ACTIVATIONS, SCORES, check_choice, check_range, fail

ROUTINGS = ("token_choice", "expert_choice")


class RouterOutput(NamedTuple):
    """What the router did: logits (T, E), indices (T, K) int32, weights (T, K) float32, counts (E) float32, and the
    auxiliary terms load_balance_loss, z_loss and entropy, all () float32.

    With expert choice, indices are (E, C) token numbers and weights (E, C).
    """

    logits: Tensor
    indices: Tensor
    weights: Tensor
    counts: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor
    entropy: Tensor


class Router(nn.Module):
    """The gate's weight (E, H) and, for sigmoid scores, the choice bias (E)."""

    e_score_correction_bias: Tensor | None

    def __init__(
        self, hidden_size: int, num_experts: int, score: str, batch_invariant: bool | None, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        self.batch_invariant = batch_invariant
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, device=device, dtype=dtype))
        bias = torch.zeros(num_experts, device=device, dtype=torch.float32) if score == "sigmoid" else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (T, E) of x (T, H)."""
        if x.device.type != "cpu" and not self.batch_invariant:
            return F.linear(x, self.weight)
        # torch's matmul picks another order of summation for another T; the grouped one keeps a token's bits.
        ends = torch.arange(2, dtype=torch.int32, device=x.device) * x.shape[0]
        return grouped_mm(x, self.weight[None], ends, batch_invariant=self.batch_invariant)


class Experts(nn.Module):
    """The experts' weights, in the layout of transformers 5: gate_up_proj (E, 2I, H), or up_proj (E, I, H), and
    down_proj (E, H, I).

    With `shards` they are this rank's experts alone, numbered from 0; `load_state_dict` takes a checkpoint of them, or
    its part of one of all experts.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        *,
        activation: str,
        gated: bool,
        bias: bool,
        batch_invariant: bool | None,
        backend: str | None,
        device: Any,
        dtype: Any,
        shards: ExpertShards | None = None,
    ) -> None:
        super().__init__()
        self.shards = shards
        self.activation, self.gated, self.backend = activation, gated, backend
        self.batch_invariant = batch_invariant
        self.num_experts = num_experts if shards is None else shards.num_local
        E, H, I = self.num_experts, hidden_size, intermediate_size
        rows = 2 * I if gated else I

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        setattr(self, self._up_name, parameter(E, rows, H))
        self.down_proj = parameter(E, H, I)
        if bias:
            setattr(self, f"{self._up_name}_bias", parameter(E, rows))
            self.down_proj_bias = parameter(E, H)
        else:
            self.register_parameter(f"{self._up_name}_bias", None)
            self.register_parameter("down_proj_bias", None)
        self._register_state_dict_hook(remember_range)

    @property
    def _up_name(self) -> str:
        return "gate_up_proj" if self.gated else "up_proj"

    def reset_parameters(self) -> None:
        """Draw each expert's matrices as nn.Linear would: uniform within ±1/√fan_in; biases zero.

        With `shards`, ranks that were seeded alike draw the experts of one layer, however many ranks there are.
        """
        for name, value in self.named_parameters():
            if name.endswith("_bias"):
                nn.init.zeros_(value)
            else:
                bound = 1 / math.sqrt(value.shape[2])
                if self.shards is None:
                    nn.init.uniform_(value, -bound, bound)
                else:
                    draw(value, bound, self.shards)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        for name, _ in self.named_parameters(recurse=False):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor):
                try:
                    part = own_part(prefix + name, value, self.shards, self.num_experts, local_metadata)
                except ValueError as error:
                    # The last argument collects what load_state_dict will raise together.
                    rest[-1].append(str(error))
                else:
                    # Assigned instead of copied, a part would keep the whole stack alive.
                    assigned = local_metadata.get("assign_to_params_buffers", False) and part is not value
                    state_dict[prefix + name] = part.clone() if assigned else part
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Return (T, H) for x (T, H), indices (T, K) and weights (T, K)."""
        return fused_experts(
            x,
            indices,
            weights,
            getattr(self, self._up_name),
            self.down_proj,
            activation=self.activation,
            gate_up_bias=getattr(self, f"{self._up_name}_bias"),
            down_bias=self.down_proj_bias,
            batch_invariant=self.batch_invariant,
            backend=self.backend,
        )


class MoELayer(nn.Module):
    """A Mixture-of-Experts feed-forward block.

    Args:
        hidden_size: H.
        intermediate_size: I of each expert.
        num_experts: E.
        top_k: K, experts per token.
        activation: "silu", "gelu", "gelu_tanh", "relu", "relu2", or, gated, "gpt_oss".
        gated: experts with a gate projection.
        bias: experts with biases.
        score: "softmax" or "sigmoid" (with a choice bias, `gate.e_score_correction_bias`).
        renormalize: the K weights sum to `scale`.
        num_groups, top_groups, scale: see `topk_gating`.
        noise_std: standard deviation of Gaussian noise on the logits, in training only.
        shared_intermediate_size: I of an expert that sees every token; 0 for none.
        shared_gate: a sigmoid gate on the shared expert, one scalar a token (Qwen2-MoE).
        capacity_factor: None is dropless; else an expert takes at most ceil(factor · T · K / E) slots.
        drop_policy: "position" or "probability" (see `capacity.drop_over_capacity`).
        routing: "token_choice", or "expert_choice", whose capacity factor is 1 unless given.
        batch_invariant: see `fused_experts`; it is then asked of the gate's product too.
        backend: a backend's name that must serve every op.
        process_group: a torch.distributed group (or a DeviceMesh of one dimension) over whose ranks the experts are
            spread; `experts` then holds this rank's alone. The forward is a collective, see
            `parallel.expert_parallel`; capacity and expert choice act on each rank's own tokens. Gate and shared
            experts are on every rank: keeping them equal is the data-parallel wrapper's task (see docs/scaling.md).
        statistics_group: a group over which counts and the load-balance loss of `return_router=True` are taken, for
            data parallelism.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        *,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
        score: str = "softmax",
        renormalize: bool = True,
        num_groups: int = 1,
        top_groups: int = 1,
        scale: float = 1.0,
        noise_std: float = 0.0,
        shared_intermediate_size: int = 0,
        shared_gate: bool = False,
        capacity_factor: float | None = None,
        drop_policy: str = "position",
        routing: str = "token_choice",
        batch_invariant: bool | None = None,
        backend: str | None = None,
        process_group: Any = None,
        statistics_group: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("intermediate_size", intermediate_size)):
            check_range("MoELayer", name, size, 1)
        check_range("MoELayer", "num_experts", num_experts, 1)
        check_range("MoELayer", "top_k", top_k, 1, num_experts)
        check_choice("MoELayer", "activation", activation, GATED_ACTIVATIONS if gated else PLAIN_ACTIVATIONS)
        check_choice("MoELayer", "score", score, SCORES)
        check_choice("MoELayer", "drop_policy", drop_policy, DROP_POLICIES)
        check_choice("MoELayer", "routing", routing, ROUTINGS)
        check_range("MoELayer", "shared_intermediate_size", shared_intermediate_size, 0)
        if capacity_factor is not None and not capacity_factor > 0:
            fail("MoELayer", "capacity_factor", "a positive number or None", capacity_factor)
        if noise_std < 0:
            fail("MoELayer", "noise_std", "a number of at least 0", noise_std)
        self.hidden_size, self.num_experts, self.top_k = hidden_size, num_experts, top_k
        self.score, self.renormalize, self.scale = score, renormalize, scale
        self.num_groups, self.top_groups, self.noise_std = num_groups, top_groups, noise_std
        self.capacity_factor, self.drop_policy, self.routing = capacity_factor, drop_policy, routing
        self.backend = backend

        self.gate = Router(hidden_size, num_experts, score, batch_invariant, device, dtype)
        common: dict[str, Any] = dict(
            activation=activation,
            gated=gated,
            bias=bias,
            batch_invariant=batch_invariant,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.expert_shards = None if process_group is None else ExpertShards(process_group, num_experts)
        self.statistics = None if statistics_group is None else Group(statistics_group, "statistics_group")
        self.experts: nn.Module = Experts(
            hidden_size, intermediate_size, num_experts, shards=self.expert_shards, **common
        )
        self.shared_experts: nn.Module | None = None
        self.shared_expert_gate: nn.Linear | None = None
        if shared_intermediate_size:
            self.shared_experts = Experts(hidden_size, shared_intermediate_size, 1, **common)
            if shared_gate:
                self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights (see `Experts.reset_parameters`); the gate as nn.Linear would."""
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.gate.weight, -bound, bound)
        for module in (self.experts, self.shared_experts):
            if isinstance(module, Experts):
                module.reset_parameters()
        if self.shared_expert_gate is not None:
            self.shared_expert_gate.reset_parameters()

    def route(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, TopKGating]:
        """Return the logits (T, E) of x (T, H) and the gating they give; capacity is not applied here."""
        logits = self.gate(x)
        noise = torch.randn_like(logits) * self.noise_std if self.training and self.noise_std else None
        gating = topk_gating(
            logits,
            self.top_k,
            score=self.score,
            bias=self.gate.e_score_correction_bias,
            num_groups=self.num_groups,
            top_groups=self.top_groups,
            renormalize=self.renormalize,
            scale=self.scale,
            noise=noise,
            mask=mask,
            backend=self.backend,
        )
        return logits, gating

    def forward(
        self, x: Tensor, *, return_router: bool = False, mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, RouterOutput]:
        """Route each token to its experts.

        Args:
            x: (..., H) floating.
            return_router: also return a `RouterOutput`.
            mask: x's shape without H, bool, True for the tokens that count in the auxiliary losses.

        Returns:
            A tensor of x's shape, or that and a `RouterOutput`.
        """
        if x.shape[-1] != self.hidden_size:
            fail("MoELayer", "x", f"shape (..., H={self.hidden_size})", tuple(x.shape))
        if mask is not None and mask.shape != x.shape[:-1]:
            fail("MoELayer", "mask", f"shape {tuple(x.shape[:-1])}", tuple(mask.shape))
        x_TH = x.reshape(-1, self.hidden_size)
        logits, gating = self.route(x_TH, None if mask is None else mask.reshape(-1))
        if self.routing == "expert_choice":
            indices, weights = expert_choice(logits, self.top_k, self.capacity_factor or 1.0)
            out = self._expert_choice(x_TH, indices, weights)
        else:
            indices, weights = gating.indices, gating.weights
            if self.capacity_factor is not None:
                indices = drop_over_capacity(
                    indices, weights, self.num_experts, self.capacity_factor, self.drop_policy, self.backend
                )
            out = self._routed(x_TH, indices, weights)
        if self.shared_experts is not None:
            out = out + self._shared(x_TH)
        out = out.view(x.shape)
        if not return_router:
            return out
        counts, probability = gating.counts, gating.mean_probability
        if self.statistics is not None:
            counts, probability = reduce_statistics(counts, probability, self.statistics.group)
        balance = load_balance_loss(counts, probability)
        return out, RouterOutput(logits, indices, weights, counts, balance, gating.z, gating.entropy)

    def _routed(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        if self.expert_shards is None:
            return self.experts(x_TH, indices_TK, weights_TK)
        return expert_parallel(
            x_TH,
            indices_TK,
            weights_TK,
            self.experts,
            self.expert_shards,
            parameters=tuple(self.experts.parameters()),
            backend=self.backend,
        )

    def _expert_choice(self, x_TH: Tensor, tokens_EC: Tensor, weights_EC: Tensor) -> Tensor:
        E, C = tokens_EC.shape
        rows = x_TH[tokens_EC.reshape(-1)]
        owner = torch.arange(E, device=x_TH.device, dtype=torch.int32).repeat_interleave(C)[:, None]
        out = self._routed(rows, owner, weights_EC.reshape(-1, 1))
        summed = torch.zeros_like(x_TH, dtype=weights_EC.dtype)
        return summed.index_add(0, tokens_EC.reshape(-1), out.to(weights_EC.dtype)).to(x_TH.dtype)

    def _shared(self, x_TH: Tensor) -> Tensor:
        assert self.shared_experts is not None
        T = x_TH.shape[0]
        everyone = torch.zeros(T, 1, dtype=torch.int32, device=x_TH.device)
        if self.shared_expert_gate is None:
            weights = torch.ones(T, 1, device=x_TH.device)
        else:
            weights = torch.sigmoid(self.shared_expert_gate(x_TH))
        return self.shared_experts(x_TH, everyone, weights)

    def extra_repr(self) -> str:
        sizes = f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, top_k={self.top_k}"
        return sizes if self.expert_shards is None else f"{sizes}, {self.expert_shards}"
