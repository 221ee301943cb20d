"""Our generation against transformers' own."""

from __future__ import annotations

import os

import peft
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen2Config, Qwen2ForCausalLM

from moe_kernels.native import native as native_core
from moe_kernels.testing import relative_error
from specmoe.decoding import generate, native
from specmoe.decoding.choosing import argmax
from specmoe.decoding.network import read
from specmoe.decoding.state import State

SIZES = {
    "vocab_size": 192, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": None,
}  # fmt: skip


# Heads of 32 values: what the native core attends with. Smaller ones are left to torch.
NATIVE = {"hidden_size": 128, "head_dim": 32}


def gemma(**sizes: int) -> Gemma3ForCausalLM:
    """Two layers in three see the last 9 tokens alone."""
    config = Gemma3TextConfig(
        **{**SIZES, "head_dim": 16, **sizes}, sliding_window=9, query_pre_attn_scalar=16, bos_token_id=None,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


def qwen(**sizes: int) -> Qwen2ForCausalLM:
    sizes.pop("head_dim", None)
    return Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **sizes}, bos_token_id=None))


@pytest.fixture(params=["gemma", "gemma-native", "qwen", "qwen-native"])
def model(request):
    torch.manual_seed(3)
    made = gemma if request.param.startswith("gemma") else qwen
    model = made(**(NATIVE if request.param.endswith("native") else {})).eval()
    for parameter in model.parameters():
        # Weights of norms and biases are 0 or 1 otherwise, and tokens all alike.
        parameter.data += 0.2 * (32 / model.config.hidden_size) ** 0.5 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=["padded", "whole"])
def prompts(request):
    torch.manual_seed(4)
    ids = torch.randint(4, 190, (5, 12))
    mask = torch.ones_like(ids)
    if request.param == "padded":
        for row, blank in enumerate((0, 3, 11, 1, 7)):
            ids[row, :blank], mask[row, :blank] = 0, 0
    return ids, mask


@pytest.fixture(params=["as-it-is", "without-the-core"])
def core(request, monkeypatch):
    """With the native core's forms where there are any, and without."""
    if request.param == "without-the-core":
        monkeypatch.setenv("MOE_KERNELS_BACKEND", "reference")


@pytest.fixture
def own(monkeypatch):
    """Counts the steps that were taken here and not in transformers."""
    steps = []
    step = State.step
    monkeypatch.setattr(State, "step", lambda self, tokens: steps.append(1) or step(self, tokens))
    return steps


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "temperature": 0.7, "top_p": 0.8}, {"do_sample": True, "top_k": 5}, {"do_sample": True}],
    ids=["greedy", "top-p", "top-k", "default-sampling"],
)  # fmt: skip
def test_same_tokens_as_transformers(model, prompts, own, core, options):
    ids, mask = prompts
    torch.manual_seed(7)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=90, **options)
    torch.manual_seed(7)
    found = generate(model, ids, mask, max_new_tokens=90, **options)
    # 90 new tokens: keys and values have grown twice.
    assert torch.equal(found, wanted)
    assert len(own) == 89


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_each_step(model, prompts, core, dtype):
    ids, mask = prompts
    model = model.to(dtype)
    text = torch.cat((ids, torch.randint(4, 190, (len(ids), 70))), 1)
    whole = torch.cat((mask, torch.ones(len(ids), 70, dtype=mask.dtype)), 1)
    with torch.no_grad():
        positions = (whole.cumsum(1) - 1).clamp(min=0)
        wanted = model(text, attention_mask=whole, position_ids=positions).logits
        state = State(read(model), mask)
        found = [state.read(ids), *(state.step(tokens) for tokens in text[:, ids.shape[1] :].T)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(torch.stack(found, 1), wanted[:, ids.shape[1] - 1 :]) < tolerance


def test_the_core_does_what_it_can(model, prompts, core, monkeypatch):
    attended, multiplied = [], []
    attend, multiply = native.NativeAttention.__call__, native.BoundLinear.__call__
    monkeypatch.setattr(native.NativeAttention, "__call__", lambda *a: attended.append(1) or attend(*a))
    monkeypatch.setattr(native.BoundLinear, "__call__", lambda *a: multiplied.append(1) or multiply(*a))
    generate(model, *prompts, max_new_tokens=5)
    built = native_core()[0] is not None and os.environ.get("MOE_KERNELS_BACKEND") != "reference"
    # 3 layers, 4 steps behind the prompts; 7 linear layers in each and the head.
    assert len(attended) == (12 if built and model.config.hidden_size == 128 else 0)
    assert len(multiplied) == (5 * 22 if built else 0)


def test_hooks_of_linear_layers_are_called(model, prompts):
    called = []
    with model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *a: called.append(1)):
        generate(model, *prompts, max_new_tokens=5)
    assert len(called) == 5


@pytest.mark.parametrize("part", ["layers.1", "layers.0.mlp", "layers.2.self_attn", "norm", "layers.0.mlp.down_proj"])
def test_hooks_are_seen(model, prompts, own, part):
    ids, mask = prompts
    plain = generate(model, ids, mask, max_new_tokens=9)

    def steer(module, given, found):
        changed = found[0] if isinstance(found, tuple) else found
        changed[:, -1] += 2.0

    own.clear()
    with model.model.get_submodule(part).register_forward_hook(steer):
        wanted = model.generate(ids, attention_mask=mask, max_new_tokens=9)
        found = generate(model, ids, mask, max_new_tokens=9)
    assert torch.equal(found, wanted) and not torch.equal(found, plain) and not own


@pytest.mark.parametrize("case", ["mlp", "forward", "norm", "attention"])
def test_other_parts_are_left_to_transformers(model, case):
    class Other(torch.nn.Module):
        def __init__(self, there):
            super().__init__()
            self.there = there

        def forward(self, *given, **options):
            return self.there(*given, **options)

    layer = model.model.layers[1]
    if case == "mlp":
        layer.mlp = Other(layer.mlp)
    elif case == "norm":
        layer.input_layernorm = Other(layer.input_layernorm)
    elif case == "forward":
        layer.mlp.forward = layer.mlp.forward
    else:
        model.config._attn_implementation = "mine"
    assert read(model) is None


def test_adapters_of_peft_in_place_and_around(prompts, own):
    torch.manual_seed(3)
    model = qwen(**NATIVE).eval()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    ids, mask = prompts
    wanted = wrapped.generate(input_ids=ids, attention_mask=mask, max_new_tokens=9)
    assert torch.equal(generate(wrapped, ids, mask, max_new_tokens=9), wanted) and not own
    assert torch.equal(generate(model, ids, mask, max_new_tokens=9), wanted) and len(own) == 8


def test_float64(model, prompts, own):
    ids, mask = prompts
    model = model.double()
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=9)
    assert torch.equal(generate(model, ids, mask, max_new_tokens=9), wanted) and len(own) == 8


def test_masks_of_other_kinds(model, own):
    torch.manual_seed(4)
    ids = torch.randint(4, 190, (3, 8))
    mask = torch.ones(1, 8, dtype=torch.int64)
    mask[0, :2] = 0
    wanted = model.generate(ids, attention_mask=mask.expand(3, -1), max_new_tokens=6)
    for given in (mask, mask.bool(), mask.float(), mask.expand(3, -1).int()):
        assert torch.equal(generate(model, ids, given, max_new_tokens=6), wanted)
    assert len(own) == 20


def test_weights_that_are_replaced_meanwhile_stay_readable(model, prompts):
    ids, mask = prompts
    wanted = generate(model, ids, mask, max_new_tokens=6)
    state = State(read(model), mask)
    with torch.no_grad():
        tokens = [state.read(ids).argmax(-1)]
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        rubbish = [torch.full((n, 128), 7.0) for n in (32, 48, 128, 192) for _ in range(40)]
        for _ in range(5):
            tokens.append(state.step(tokens[-1]).argmax(-1))
    assert torch.equal(torch.stack(tokens, 1), wanted[:, ids.shape[1] :]) and rubbish


def test_ends(model, prompts, own):
    ids, mask = prompts
    free = generate(model, ids, mask, max_new_tokens=30)[:, ids.shape[1] :]
    ends = [int(free[0, 4]), int(free[1, 9])]
    options = {"max_new_tokens": 30, "eos_token_id": ends, "pad_token_id": 0}
    assert torch.equal(generate(model, ids, mask, **options), model.generate(ids, attention_mask=mask, **options))
    own.clear()
    short = generate(model, ids[:1], mask[:1], max_new_tokens=30, eos_token_id=ends[0], pad_token_id=0)
    assert short.shape[1] <= ids.shape[1] + 5 and len(own) == short.shape[1] - ids.shape[1] - 1


def test_prompts_longer_than_the_window(prompts, own):
    torch.manual_seed(5)
    model = gemma().eval()
    ids = torch.randint(4, 190, (2, 40))
    mask = torch.ones_like(ids)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=20)
    assert torch.equal(generate(model, ids, mask, max_new_tokens=20), wanted)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"use_cache": False}, {"repetition_penalty": 1.3}])
def test_what_is_not_known_here_is_left_to_transformers(model, prompts, own, options):
    ids, mask = prompts
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=6, **options)
    assert torch.equal(generate(model, ids, mask, max_new_tokens=6, **options), wanted)
    assert not own


@pytest.mark.parametrize("case", ["training", "other-model", "padded-behind", "hooks"])
def test_models_that_are_not_known(model, case, own, monkeypatch):
    ids = torch.randint(4, 190, (2, 6))
    mask = torch.ones_like(ids)
    if case == "training":
        model.train()
    elif case == "other-model":
        model.config.model_type = "llama"
    elif case == "padded-behind":
        mask[0, 5] = 0
    else:
        model.model.layers[0]._hf_hook = object()
    called = []
    monkeypatch.setattr(type(model), "generate", lambda self, *a, **k: called.append(k) or ids)
    assert generate(model, ids, mask, max_new_tokens=3) is ids
    assert called and not own


def test_softcapped_gemma_is_left_to_transformers():
    model = gemma().eval()
    assert read(model) is not None
    model.config.final_logit_softcapping = 30.0
    assert read(model) is None


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_rotary_embeddings_that_grow_with_the_text_are_left_to_transformers(kind, own):
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}
    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, bos_token_id=None, rope_parameters=rope)).eval()
    ids = torch.randint(4, 190, (2, 6))
    mask = torch.ones_like(ids)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=5)
    assert torch.equal(generate(model, ids, mask, max_new_tokens=5), wanted)
    assert bool(own) == (kind == "linear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 192, 100])
def test_argmax(dtype, width):
    torch.manual_seed(0)
    scores = torch.randint(-3, 4, (50, width)).to(dtype)
    first = (scores == scores.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(argmax(scores), first)


def test_one_token_takes_no_step(model, prompts, own):
    ids, mask = prompts
    assert torch.equal(
        generate(model, ids, mask, max_new_tokens=1), model.generate(ids, attention_mask=mask, max_new_tokens=1)
    )
    assert not own


def test_the_model_is_left_as_it_was(model, prompts):
    ids, mask = prompts
    before = model.generation_config.to_dict()
    generate(model, ids, mask, max_new_tokens=3, do_sample=True, temperature=0.5)
    assert model.generation_config.to_dict() == before
