"""Checkpoints whose experts come in 4 or 8 bits: GPT-OSS in MXFP4, DeepSeek-V3 in FP8 with block scales.

Without the hardware that they are for, transformers turns both into bfloat16 as it loads them, and says so. From there
on they are a model like any other: our experts compute it, and `quantize_experts` makes it small again.
"""

from __future__ import annotations

import json

import pytest
import torch
from models import gpt_oss, tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

import moe_kernels
from moe_kernels.testing import relative_error

FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
BLOCK = 128


def _mxfp4(w):
    """(E, O, H) to blocks (E, O, H/32, 16), scales (E, O, H/32) and the values that they stand for."""
    blocks = w.float().unflatten(2, (-1, 32))
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=1e-20))) - 2
    scale = torch.exp2(exponent)[..., None]
    codes = ((blocks / scale)[..., None] - FP4).abs().argmin(-1)
    packed = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    return packed, (exponent + 127).to(torch.uint8), (FP4[codes] * scale).flatten(2)


def _fp8(w):
    """(O, H) to float8 values, scales of blocks of 128 by 128, and the values that they stand for."""
    padded = torch.nn.functional.pad(w.float(), (0, -w.shape[1] % BLOCK, 0, -w.shape[0] % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = blocks.abs().amax((1, 3)) / 448
    low = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    exact = (low.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
    whole = low.flatten(2).flatten(0, 1)
    return whole[: w.shape[0], : w.shape[1]].contiguous(), scale, exact[: w.shape[0], : w.shape[1]]


def _write(folder, tensors, quantization):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation="moe_kernels")
    assert model.config._experts_implementation == "moe_kernels"
    return model.eval()


def _agrees_and_shrinks(loaded, exact):
    exact.set_experts_implementation("eager")
    with torch.no_grad():
        want = exact(tokens()).logits
        assert relative_error(loaded(tokens()).logits, want) < 0.02
        moe_kernels.quantize_experts(loaded, "int8")
        assert relative_error(loaded(tokens()).logits, want) < 0.05


def test_mxfp4(tmp_path):
    model = gpt_oss().bfloat16()
    tensors = {}
    for name, value in model.state_dict().items():
        if "experts" in name and name.endswith("_proj"):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"], exact = _mxfp4(value.transpose(1, 2))
            model.get_parameter(name).data.copy_(exact.transpose(1, 2))
        else:
            tensors[name] = value.clone()
    model.config.save_pretrained(tmp_path)
    _write(tmp_path, tensors, {"quant_method": "mxfp4"})
    _agrees_and_shrinks(_load(tmp_path), model)


def test_fp8_with_block_scales(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=BLOCK, intermediate_size=BLOCK, moe_intermediate_size=BLOCK, vocab_size=64)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=32, v_head_dim=16)
    experts = dict(n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1)
    rope = dict(qk_nope_head_dim=16, qk_rope_head_dim=16)
    config = DeepseekV3Config(num_hidden_layers=2, **sizes, **heads, **experts, **rope)
    model = DeepseekV3ForCausalLM(config).bfloat16().eval()
    model.save_pretrained(tmp_path)
    published = load_file(tmp_path / "model.safetensors")
    low, exact = {}, {}
    for name, value in published.items():
        if "proj" in name and name.endswith(".weight"):
            low[name], low[f"{name}_scale_inv"], exact[name] = _fp8(value)
            exact[name] = exact[name].to(torch.bfloat16)
        else:
            low[name] = exact[name] = value
    assert "model.layers.1.mlp.experts.3.gate_proj.weight_scale_inv" in low
    save_file(exact, tmp_path / "model.safetensors", metadata={"format": "pt"})
    want = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    _write(tmp_path, low, fp8)
    _agrees_and_shrinks(_load(tmp_path), want)


@pytest.mark.parametrize("rest", ["nf4"])
def test_beside_bitsandbytes(rest, tmp_path):
    """The rest of the model in bitsandbytes' 4 bits, the experts in ours."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    gpt_oss().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=rest, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.bfloat16, experts_implementation="moe_kernels"
    ).eval()
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    with torch.no_grad():
        before = model(tokens()).logits
        moe_kernels.quantize_experts(model, "nf4")
        assert 0 < relative_error(model(tokens()).logits, before) < 0.2
