"""Tiny checkpoints as they are published with experts in few bits: GPT-OSS in MXFP4, DeepSeek-V3 in FP8."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from models import gpt_oss
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedModel

FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
BLOCK = 128


def mxfp4(w):
    """(E, O, H) to blocks (E, O, H/32, 16), scales (E, O, H/32) and the values that they stand for."""
    blocks = w.float().unflatten(2, (-1, 32))
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=1e-20))) - 2
    scale = torch.exp2(exponent)[..., None]
    codes = ((blocks / scale)[..., None] - FP4).abs().argmin(-1)
    packed = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    return packed, (exponent + 127).to(torch.uint8), (FP4[codes] * scale).flatten(2)


def fp8(w):
    """(O, H) to float8 values, scales of blocks of 128 by 128, and the values that they stand for."""
    padded = torch.nn.functional.pad(w.float(), (0, -w.shape[1] % BLOCK, 0, -w.shape[0] % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = blocks.abs().amax((1, 3)) / 448
    low = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    exact = (low.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
    whole = low.flatten(2).flatten(0, 1)
    return whole[: w.shape[0], : w.shape[1]].contiguous(), scale, exact[: w.shape[0], : w.shape[1]]


def _write(folder: Path, tensors, quantization) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation="moe_kernels")
    assert model.config._experts_implementation == "moe_kernels"
    return model.eval()


def gpt_oss_in_mxfp4(folder: Path) -> PreTrainedModel:
    """Write the checkpoint; return a model with the values that it stands for."""
    model = gpt_oss().bfloat16()
    tensors = {}
    for name, value in model.state_dict().items():
        if "experts" in name and name.endswith("_proj"):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"], exact = mxfp4(value.transpose(1, 2))
            model.get_parameter(name).data.copy_(exact.transpose(1, 2))
        else:
            tensors[name] = value.clone()
    model.config.save_pretrained(folder)
    _write(folder, tensors, {"quant_method": "mxfp4"})
    return model


def deepseek_in_fp8(folder: Path) -> PreTrainedModel:
    """Write the checkpoint; return a model with the values that it stands for."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=BLOCK, intermediate_size=BLOCK, moe_intermediate_size=BLOCK, vocab_size=64)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=32, v_head_dim=16)
    experts = dict(n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1)
    rope = dict(qk_nope_head_dim=16, qk_rope_head_dim=16)
    config = DeepseekV3Config(num_hidden_layers=2, **sizes, **heads, **experts, **rope)
    DeepseekV3ForCausalLM(config).bfloat16().save_pretrained(folder)
    published = load_file(folder / "model.safetensors")
    low, exact = {}, {}
    for name, value in published.items():
        if "proj" in name and name.endswith(".weight"):
            low[name], low[f"{name}_scale_inv"], exact[name] = fp8(value)
            exact[name] = exact[name].to(torch.bfloat16)
        else:
            low[name] = exact[name] = value
    assert "model.layers.1.mlp.experts.3.gate_proj.weight_scale_inv" in low
    save_file(exact, folder / "model.safetensors", metadata={"format": "pt"})
    want = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    scheme = {"activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    _write(folder, low, {"quant_method": "fp8", **scheme})
    return want
