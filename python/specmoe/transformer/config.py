"""Configuration of the MoE transformer."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "gpt_oss")
NORMS = ("rms_norm", "layer_norm")
SCORES = ("softmax", "sigmoid")


class SpecMoeConfig(PretrainedConfig):
    """Shape and loss weights of a `SpecMoeForCausalLM`.

    Args:
        vocab_size: number of tokens in the vocabulary.
        hidden_size: H, the width of the residual stream.
        num_hidden_layers: L, the number of blocks.
        num_attention_heads: heads; must divide `hidden_size` into even-sized heads (rotary positions rotate pairs).
        intermediate_size: I, the inner width of one expert.
        num_experts: E, the experts of each block.
        num_experts_per_tok: K, the experts that serve one token.
        hidden_act: the experts' activation, one of `ACTIVATIONS`.
        gated_experts: whether an expert multiplies its activation with a second up-projection.
        router_score: "softmax", or "sigmoid" with a bias that corrects only the choice of experts.
        norm_topk_prob: whether the K weights of a token are scaled to sum to one.
        shared_intermediate_size: inner width of an expert that every token passes through; 0 for none.
        norm_type: "rms_norm", or "layer_norm" (with no bias; faster on CPU, where torch has a fused kernel for it).
        norm_eps: epsilon of the norms.
        qk_norm: whether queries and keys are normed, with no gain, before attention.
        rope_theta: base of the rotary position frequencies.
        max_position_embeddings: the longest context the model was trained for, in tokens.
        dropout: probability for the embeddings, attention weights and both residual branches.
        initializer_range: standard deviation of the initial weights; the projections that write to the residual stream
            start at `initializer_range / sqrt(2 L)`, the final norm's gain at `min(1, 0.02 / initializer_range)`.
        load_balance_weight: weight of the load-balance loss (added).
        z_loss_weight: weight of the router's z-loss (added).
        entropy_weight: weight of the router's entropy (subtracted: a bonus).
        moe_backend: name of the `moe_kernels` backend to insist on; None lets each device choose.

    Raises:
        ValueError: a value is out of its range; the message names it, what was expected and what came.
    """

    model_type = "specmoe"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 65,
        hidden_size: int = 384,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 6,
        intermediate_size: int = 768,
        num_experts: int = 8,
        num_experts_per_tok: int = 2,
        hidden_act: str = "gelu",
        gated_experts: bool = False,
        router_score: str = "softmax",
        norm_topk_prob: bool = True,
        shared_intermediate_size: int = 0,
        norm_type: str = "rms_norm",
        norm_eps: float = 1e-5,
        qk_norm: bool = True,
        rope_theta: float = 10000.0,
        max_position_embeddings: int = 256,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        load_balance_weight: float = 0.01,
        z_loss_weight: float = 0.001,
        entropy_weight: float = 0.0,
        moe_backend: str | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.hidden_act = hidden_act
        self.gated_experts = gated_experts
        self.router_score = router_score
        self.norm_topk_prob = norm_topk_prob
        self.shared_intermediate_size = shared_intermediate_size
        self.norm_type = norm_type
        self.norm_eps = norm_eps
        self.qk_norm = qk_norm
        self.rope_theta = rope_theta
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.load_balance_weight = load_balance_weight
        self.z_loss_weight = z_loss_weight
        self.entropy_weight = entropy_weight
        self.moe_backend = moe_backend
        self.use_cache = use_cache
        self._validate()
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def _validate(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_experts",
            "num_experts_per_tok",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _error(name, "an integer of at least 1", value)
        if self.num_experts_per_tok > self.num_experts:
            raise _error("num_experts_per_tok", f"at most num_experts={self.num_experts}", self.num_experts_per_tok)
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise _error(
                "hidden_size",
                f"a multiple of 2 * num_attention_heads={2 * self.num_attention_heads} (heads of even width)",
                self.hidden_size,
            )
        if self.shared_intermediate_size < 0:
            raise _error("shared_intermediate_size", "an integer of at least 0", self.shared_intermediate_size)
        for name, known in (("hidden_act", ACTIVATIONS), ("norm_type", NORMS), ("router_score", SCORES)):
            if getattr(self, name) not in known:
                raise _error(name, f"one of {', '.join(known)}", getattr(self, name))
        if self.hidden_act == "gpt_oss" and not self.gated_experts:
            raise _error("gated_experts", "True with hidden_act='gpt_oss'", self.gated_experts)
        if not self.initializer_range > 0.0:
            raise _error("initializer_range", "a number above 0", self.initializer_range)
        if not 0.0 <= self.dropout < 1.0:
            raise _error("dropout", "a probability in [0, 1)", self.dropout)
        for name in ("load_balance_weight", "z_loss_weight", "entropy_weight"):
            if not getattr(self, name) >= 0.0:
                raise _error(name, "a number of at least 0", getattr(self, name))


def _error(name: str, expected: str, got: object) -> ValueError:
    return ValueError(f"SpecMoeConfig: {name}: expected {expected}, got {got!r}")
