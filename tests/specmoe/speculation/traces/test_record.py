"""Recording from tiny random models of transformers and from this project's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from specmoe.speculation.traces import record_trace
from specmoe.speculation.traces.blocks import find_blocks

E, K, H = 6, 2, 32
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": H,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "num_experts_per_tok": K,
}


def tiny(kind: str) -> Any:
    import transformers as t

    import specmoe.transformer as own

    torch.manual_seed(0)
    if kind == "mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(**SIZES, num_local_experts=E))
    if kind == "qwen2_moe":
        return t.Qwen2MoeForCausalLM(
            t.Qwen2MoeConfig(**SIZES, num_experts=E, moe_intermediate_size=16, shared_expert_intermediate_size=16)
        )
    if kind == "qwen3_moe":
        return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**SIZES, num_experts=E, moe_intermediate_size=16, head_dim=16))
    if kind == "olmoe":
        return t.OlmoeForCausalLM(t.OlmoeConfig(**SIZES, num_experts=E))
    if kind == "gpt_oss":
        return t.GptOssForCausalLM(t.GptOssConfig(**SIZES, num_local_experts=E, head_dim=16, sliding_window=8))
    if kind == "deepseek_v3":
        return t.DeepseekV3ForCausalLM(
            t.DeepseekV3Config(
                **{**SIZES, "num_key_value_heads": 2},
                n_routed_experts=E,
                n_shared_experts=1,
                moe_intermediate_size=16,
                first_k_dense_replace=1,
                n_group=1,
                topk_group=1,
                q_lora_rank=8,
                kv_lora_rank=8,
                qk_rope_head_dim=8,
                qk_nope_head_dim=8,
                v_head_dim=8,
            )
        )
    sizes = {k: v for k, v in SIZES.items() if k in ("vocab_size", "hidden_size", "num_attention_heads")}
    return own.SpecMoeForCausalLM(
        own.SpecMoeConfig(**sizes, num_hidden_layers=3, num_experts=E, num_experts_per_tok=K, intermediate_size=16)
    )


def switch(experts: int = 128) -> Any:
    import transformers as t

    torch.manual_seed(0)
    return t.SwitchTransformersForConditionalGeneration(
        t.SwitchTransformersConfig(
            vocab_size=64, d_model=H, d_kv=8, d_ff=16, num_layers=4, num_sparse_encoder_layers=2, num_decoder_layers=4,
            num_sparse_decoder_layers=2, num_heads=2, num_experts=experts, expert_capacity=64, decoder_start_token_id=0,
        )
    )  # fmt: skip


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 60, (n,), generator=generator) for n in (7, 5)]


KINDS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "own")


@pytest.mark.parametrize("kind", KINDS)
def test_routes_are_those_of_the_gates(kind: str) -> None:
    model = tiny(kind).eval()
    trace = record_trace(model, prompts(), hidden=True, labels=["a", "b"])
    layers = 2 if kind == "deepseek_v3" else 3
    assert trace.experts.shape == (12, layers, K) and trace.num_experts == E
    assert trace.starts.tolist() == [0, 7, 12]
    assert trace.tokens is not None and trace.tokens.tolist() == torch.cat(prompts()).tolist()
    assert trace.weights is not None and (np.diff(trace.weights.astype(np.float32), axis=2) <= 0).all()
    assert trace.residuals is not None and trace.residuals.shape == (12, layers, H)
    assert (trace.shared is not None) == (kind in ("qwen2_moe", "deepseek_v3"))
    # The recorded residual stream through the block's own norm and gate gives the recorded experts.
    for block in find_blocks(model):
        assert block.norm is not None and block.gate_weight is not None
        with torch.no_grad():
            x = block.norm(torch.from_numpy(trace.residuals[:, block.layer]).float())
            scores = x @ block.gate_weight.T
            if block.gate_bias is not None:
                scores = scores + block.gate_bias
        want = np.sort(scores.topk(K).indices.numpy())
        same = (want == np.sort(trace.experts[:, block.layer])).all(1)
        # float16 residuals may swap two near-equal scores.
        assert same.mean() > 0.8, block.name


def test_generated_tokens_are_recorded_once() -> None:
    trace = record_trace(tiny("mixtral").eval(), prompts(), new_tokens=4)
    assert len(trace.experts) <= 12 + 8 and trace.tokens is not None
    assert trace.tokens[:7].tolist() == prompts()[0].tolist()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_switch_with_128_experts(part: str) -> None:
    trace = record_trace(switch().eval(), prompts(), part=part, new_tokens=3, hidden=True)
    assert trace.num_experts == 128 and trace.experts.shape[1:] == (2, 1)
    assert int(trace.experts.max()) < 128
    if part == "encoder":
        assert len(trace.experts) == 12


def test_a_token_over_capacity_is_none() -> None:
    model = switch(4).eval()
    for block in find_blocks(model, "encoder"):
        block.router.expert_capacity = 1  # type: ignore[union-attr, assignment]
    trace = record_trace(model, [torch.full((6,), 7)], part="encoder")
    assert (trace.experts == 4).any()


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="expected blocks with a router"):
        record_trace(torch.nn.Linear(2, 2), prompts())


def test_the_decoder_needs_tokens_to_write() -> None:
    with pytest.raises(ValueError, match="new_tokens: expected at least 1"):
        record_trace(switch(4).eval(), prompts())
