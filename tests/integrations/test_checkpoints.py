"""Checkpoints whose experts come in 4 or 8 bits: GPT-OSS in MXFP4, DeepSeek-V3 in FP8 with block scales.

Without the hardware that they are for, transformers turns both into bfloat16 as it loads them, and says so. From there
on they are a model like any other: our experts compute it, and `quantize_experts` makes it small again.
`test_low_bits.py` has what is there with the hardware.
"""

from __future__ import annotations

import logging

import pytest
import torch
from models import gpt_oss, tokens
from published import deepseek_in_fp8, gpt_oss_in_mxfp4, load
from transformers import AutoConfig, AutoModelForCausalLM

import moe_kernels
from moe_kernels.quantized import load_quantized, save_quantized
from moe_kernels.testing import relative_error

CHECKPOINTS = {"mxfp4": gpt_oss_in_mxfp4, "fp8": deepseek_in_fp8}


@pytest.fixture
def said():
    """What transformers logs."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize("format", CHECKPOINTS)
def test_loaded_saved_and_quantized(format, said, tmp_path):
    from transformers.utils import logging as theirs

    # It says a thing once in a process.
    theirs.warning_once.cache_clear()
    exact = CHECKPOINTS[format](tmp_path)
    exact.set_experts_implementation("eager")
    loaded = load(tmp_path)
    assert any("dequantiz" in line and "bf16" in line for line in said), said
    with torch.no_grad():
        want = exact(tokens()).logits
        got = loaded(tokens()).logits
        assert relative_error(got, want) < 0.02
        # In their published format transformers 5.23 cannot write them: it loses MXFP4, and fails with FP8.
        loaded.save_pretrained(tmp_path / "saved", save_original_format=False)
        assert torch.equal(load(tmp_path / "saved")(tokens()).logits, got)
        moe_kernels.quantize_experts(loaded, "int8")
        low = loaded(tokens()).logits
        assert relative_error(low, want) < 0.05
        save_quantized(loaded, tmp_path / "int8.safetensors")
        again = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), dtype=torch.bfloat16).eval()
        assert torch.equal(load_quantized(again, tmp_path / "int8.safetensors")(tokens()).logits, low)


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
