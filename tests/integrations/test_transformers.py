"""experts_implementation="moe_kernels": its registration, and the two paths that an expert module can take."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from models import MODELS, gpt_oss, mixtral, tokens
from torch import nn
from transformers import AutoModelForCausalLM

import moe_kernels
from moe_kernels.integrations.recognition import is_experts, recognize
from moe_kernels.quantized import QuantizedExperts, load_quantized, save_quantized
from moe_kernels.testing import assert_close, relative_error


def _experts(model):
    return next(module for module in model.modules() if is_experts(module))


@pytest.mark.parametrize("order", ["moe_kernels, transformers", "transformers, moe_kernels"])
def test_registered_in_either_order(order):
    code = f"""
import sys
import {order.split(", ")[0]}
assert {order.startswith("transformers")} == ("transformers" in sys.modules)
import {order.split(", ")[1]}
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
assert "moe_kernels" in ALL_EXPERTS_FUNCTIONS.keys()
import transformers.integrations.moe as module
assert type(module.__loader__).__module__ == "_frozen_importlib_external", module.__loader__
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", MODELS)
def test_loads_with_the_implementation(name, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="moe_kernels").eval()
    assert loaded.config._experts_implementation == "moe_kernels"
    model.set_experts_implementation("eager")
    with torch.no_grad():
        assert_close(loaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    grads = []
    for implementation in ("eager", "moe_kernels"):
        model = MODELS[name]()
        model.set_experts_implementation(implementation)
        model(tokens(), labels=tokens()).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for parameter, want in grads[0].items():
        assert_close(grads[1][parameter], want, what=parameter)


def test_recognized():
    assert recognize(_experts(mixtral()))[:4] == ("gate_up_proj", False, "silu", False)
    assert recognize(_experts(gpt_oss()))[:4] == ("gate_up_proj", True, "gpt_oss", True)
    # Other clamps than the kernels have: the model's own function is called.
    found = recognize(_experts(gpt_oss(swiglu_limit=3.0)))
    assert found.activation is None and "none of the kernels'" in found.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_steps_is_the_same(dtype):
    fused, steps = (gpt_oss().to(dtype) for _ in range(2))
    for module in steps.modules():
        if is_experts(module):
            module.__dict__["_moe_kernels_recognized"] = recognize(module)._replace(activation=None)
    for model in (fused, steps):
        model.set_experts_implementation("moe_kernels")
    with torch.no_grad():
        assert_close(steps(tokens()).logits, fused(tokens()).logits)


def test_gradient_checkpointing():
    grads = []
    for on in (False, True):
        model = mixtral().train()
        model.set_experts_implementation("moe_kernels")
        if on:
            model.gradient_checkpointing_enable()
        model(tokens(), labels=tokens()).loss.backward()
        grads.append(_experts(model).down_proj.grad)
    assert_close(grads[1], grads[0])


def test_autocast():
    model = mixtral()
    model.set_experts_implementation("moe_kernels")
    with torch.no_grad():
        exact = model(tokens()).logits
        with torch.autocast("cpu", torch.bfloat16):
            low = model(tokens()).logits
    assert relative_error(low, exact) < 0.05


@pytest.mark.parametrize("format", ["nf4", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_quantized(name, format, tmp_path):
    model = MODELS[name]()
    with torch.no_grad():
        exact = model(tokens()).logits
        moe_kernels.quantize_experts(model, format)
        assert any(isinstance(module, QuantizedExperts) for module in model.modules())
        low = model(tokens()).logits
        assert 0 < relative_error(low, exact) < (0.15 if format == "nf4" else 0.02)
        save_quantized(model, tmp_path / "model.safetensors")
        again = load_quantized(MODELS[name](seed=1), tmp_path / "model.safetensors")
        assert torch.equal(again(tokens()).logits, low)


def test_sentinels():
    experts = _experts(mixtral())
    x, weights = torch.randn(5, 64), torch.rand(5, 2)
    index = torch.tensor([[0, 4], [1, 2], [4, 4], [3, 0], [4, 1]])
    experts.config._experts_implementation = "moe_kernels"
    got = experts(x, index, weights)
    kept = torch.where(index < 4, weights, 0.0)
    experts.config._experts_implementation = "eager"
    assert_close(got, experts(x, index, kept))


def test_a_module_that_cannot_be_asked():
    class Odd(nn.Module):
        has_gate = has_bias = is_transposed = False

        def _apply_gate(self, pre):
            raise RuntimeError("only at night")

    odd = Odd()
    odd.has_gate = True
    found = recognize(odd)
    assert found.activation is None and "only at night" in found.reason
