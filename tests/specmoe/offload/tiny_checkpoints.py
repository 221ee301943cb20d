"""Tiny random checkpoints of every architecture that can be offloaded, as their publishers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)

from specmoe.transformer import SpecMoeConfig, SpecMoeForCausalLM

VOCABULARY, H, I, EXPERTS, TOP_K, LAYERS = 96, 64, 128, 6, 2, 3
_COMMON: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=H,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts_per_tok=TOP_K,
    max_position_embeddings=128,
    initializer_range=0.15,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_DEEPSEEK: dict[str, Any] = dict(
    intermediate_size=96,
    moe_intermediate_size=I,
    n_routed_experts=EXPERTS,
    n_shared_experts=1,
    first_k_dense_replace=1,
    kv_lora_rank=16,
    q_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=16,
    v_head_dim=16,
    num_key_value_heads=4,
    n_group=1,
    topk_group=1,
)


def _config(kind: str) -> Any:
    if kind == "mixtral":
        return MixtralConfig(**_COMMON, intermediate_size=I, num_local_experts=EXPERTS)
    if kind == "qwen2_moe":
        sizes = dict(intermediate_size=96, moe_intermediate_size=I, shared_expert_intermediate_size=32)
        return Qwen2MoeConfig(**_COMMON, **sizes, num_experts=EXPERTS)
    if kind == "qwen3_moe":
        sizes = dict(intermediate_size=96, moe_intermediate_size=I, head_dim=16)
        return Qwen3MoeConfig(**_COMMON, **sizes, num_experts=EXPERTS, norm_topk_prob=True)
    if kind == "olmoe":
        return OlmoeConfig(**_COMMON, intermediate_size=I, num_experts=EXPERTS)
    if kind == "deepseek_v2":
        return DeepseekV2Config(**{**_COMMON, **_DEEPSEEK})
    if kind in ("deepseek_v3", "deepseek_v3_fp8"):
        return DeepseekV3Config(**{**_COMMON, **_DEEPSEEK})
    if kind in ("gpt_oss", "gpt_oss_mxfp4"):
        return GptOssConfig(**_COMMON, intermediate_size=I, num_local_experts=EXPERTS, head_dim=16)
    if kind == "switch":
        return SwitchTransformersConfig(
            vocab_size=VOCABULARY,
            d_model=H,
            d_kv=16,
            d_ff=I,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            num_experts=EXPERTS,
            expert_capacity=64,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            initializer_factor=3.0,
        )
    assert kind == "specmoe"
    return SpecMoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=H,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=I,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        gated_experts=True,
        initializer_range=0.15,
    )


KINDS = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v3_fp8",
    "gpt_oss",
    "gpt_oss_mxfp4",
    "switch",
    "specmoe",
)


def make_model(kind: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a tiny random model."""
    torch.manual_seed(0)
    config = _config(kind)
    if kind == "specmoe":
        return SpecMoeForCausalLM(config).to(dtype).eval()
    auto = AutoModelForSeq2SeqLM if kind == "switch" else AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.1)
    return model


def write_checkpoint(kind: str, folder: Path, dtype: torch.dtype = torch.bfloat16, shard: str = "1GB") -> Any:
    """Write a checkpoint as its publisher would, and return the model with the values that it stands for."""
    model = make_model(kind, dtype)
    model.config.dtype = dtype
    if kind == "gpt_oss_mxfp4":
        packed = _pack_mxfp4(model)
    model.save_pretrained(folder, max_shard_size=shard)
    if kind == "gpt_oss_mxfp4":
        _rewrite(folder, lambda tensors: _replace_experts(tensors, packed), {"quant_method": "mxfp4"})
    if kind == "deepseek_v3_fp8":
        expected: dict[str, torch.Tensor] = {}
        options = {"quant_method": "fp8", "weight_block_size": [32, 16], "fmt": "e4m3", "activation_scheme": "dynamic"}
        _rewrite(folder, lambda tensors: _to_fp8(tensors, expected), options)
        _load_values(model, expected)
    return model


def _rewrite(folder: Path, change: Any, quantization: dict[str, Any]) -> None:
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


def _pack_mxfp4(model: Any) -> dict[str, torch.Tensor]:
    """Set a model's experts to values that MXFP4 has, computed a value at a time; return the bytes."""
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    values += [-value for value in values]
    table = torch.tensor(values)
    generator = torch.Generator().manual_seed(3)
    packed = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                continue
            E, columns, rows = parameter.shape
            codes = torch.randint(0, 16, (E, rows, columns // 32, 32), generator=generator)
            scales = torch.randint(120, 126, (E, rows, columns // 32), generator=generator)
            wide = table[codes] * torch.exp2(scales[..., None].float() - 127)
            parameter.copy_(wide.reshape(E, rows, columns).transpose(1, 2))
            packed[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
            packed[f"{name}_scales"] = scales.to(torch.uint8)
    return packed


def _replace_experts(tensors: dict[str, torch.Tensor], packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {n: t for n, t in tensors.items() if not n.endswith(("experts.gate_up_proj", "experts.down_proj"))}
    return {**kept, **packed}


def _to_fp8(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for name, value in tensors.items():
        if not name.endswith("proj.weight"):
            out[name] = value
            continue
        O, columns = value.shape
        wide = torch.zeros(-(-O // 32) * 32, -(-columns // 16) * 16)
        wide[:O, :columns] = value.float()
        blocks = wide.view(-1, 32, wide.shape[1] // 16, 16)
        scale = blocks.abs().amax((1, 3)).clamp(min=1e-6) / 448
        low = (blocks / scale[:, None, :, None]).view(wide.shape)[:O, :columns].to(torch.float8_e4m3fn)
        out[name], out[f"{name}_scale_inv"] = low.contiguous(), scale
        back = torch.empty(O, columns)
        for i in range(O):
            for j in range(columns):
                back[i, j] = low[i, j].float() * scale[i // 32, j // 16]
        expected[name] = back.to(value.dtype)
    return out


def _load_values(model: Any, values: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    for name, value in values.items():
        if name in state:
            state[name].copy_(value)
            continue
        group, expert, part = name.removesuffix(".weight").rsplit(".", 2)
        rows = state[f"{group}.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"][int(expert)]
        half = rows.shape[0] // 2
        {"gate_proj": rows[:half], "up_proj": rows[half:], "down_proj": rows}[part].copy_(value)


def expert_weights(model: Any) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Return, for each expert module of a model, the tensors of each of its experts."""
    found: dict[str, list[dict[str, torch.Tensor]]] = {}
    for name, module in model.named_modules():
        if not name.endswith(".experts"):
            continue
        if isinstance(module, torch.nn.ModuleDict):
            found[name] = [
                {"up_proj": e.wi.weight.detach(), "down_proj": e.wo.weight.detach()} for e in module.values()
            ]
        else:
            parameters = {n: p.detach() for n, p in module.named_parameters()}
            found[name] = [{n: p[e] for n, p in parameters.items()} for e in range(EXPERTS)]
    return found
