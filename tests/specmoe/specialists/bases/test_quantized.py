"""A base in NF4: read back as it was written, never repacked, and trained through without losing a gradient."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_base import save_tiny, sides

from specmoe.lora.adapters import new_adapter
from specmoe.lora.base import TARGETS
from specmoe.specialists.bases import keep_unpacked, load_quantized, quantize_base, quantized_digest
from specmoe.training import CheckpointError

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    save_tiny(place / "base")
    return quantize_base(place / "base", place / "base-nf4")


def stored(model):
    """Every 4-bit weight with its scales, as they lie in memory."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.uint8:
            state = parameter.quant_state
            found[name.removeprefix("base_model.model.").replace(".base_layer", "")] = (
                parameter.detach().clone(),
                state.absmax.clone(),
                state.state2.absmax.clone(),
            )
    return found


def same_weights(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True)
    )


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_the_projections_alone_are_in_four_bits_with_double_quantization(folder):
    base = load_quantized(folder)
    four_bit = {name for name, p in base.model.named_parameters() if p.dtype == torch.uint8}
    assert {name.split(".")[-2] for name in four_bit} == set(TARGETS)
    assert len(four_bit) == 7 * base.model.config.num_hidden_layers
    for module in base.model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            assert (module.weight.quant_state.quant_type, module.weight.quant_state.nested) == ("nf4", True)
    assert base.digest == quantized_digest(folder)


def test_it_is_opened_without_being_quantized_again(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("quantized again")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", refuse)
    assert same_weights(stored(load_quantized(folder).model), stored(load_quantized(folder).model))


def test_its_weights_are_the_nearest_of_four_bits(folder):
    full = load_file(folder.with_name("base") / "model.safetensors")
    for name, parameter in load_quantized(folder).model.named_parameters():
        wanted = full[name]
        if parameter.dtype != torch.uint8:
            assert torch.equal(parameter, wanted), name
            continue
        got = bitsandbytes.functional.dequantize_4bit(parameter, parameter.quant_state)
        # NF4 of normal weights in blocks of 64: 0.09 of their size.
        assert 0.07 < ((got - wanted).norm() / wanted.norm()).item() < 0.11, name


def test_evaluation_before_training_leaves_weights_and_gradients(folder):
    """The trap: on a CPU with AVX512-BF16 a forward without gradients packs the weights, and training goes on deaf."""
    ids = torch.arange(64).reshape(2, 32) % 200 + 4
    untouched = new_adapter(load_quantized(folder), 4, 8, 0.0, 0, TARGETS)
    wanted = gradients(untouched.train(), ids)
    base = load_quantized(folder)
    before = stored(base.model)
    adapted = new_adapter(base, 4, 8, 0.0, 0, TARGETS)
    with torch.no_grad():
        adapted.eval()(input_ids=ids)
    assert same_weights(before, stored(base.model))
    got = gradients(adapted.train(), ids)
    assert got.keys() == wanted.keys()
    assert len(got) == 2 * 7 * base.model.config.num_hidden_layers
    for name, gradient in got.items():
        assert torch.equal(gradient, wanted[name]), name
        if "lora_B" in name:
            assert gradient.abs().sum() > 0, name


def test_without_the_guard_this_processor_would_fall_into_the_trap(folder):
    """Says that the test above tests something here: on other processors nothing is packed."""
    if not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16")
    base = load_quantized(folder)
    for module in base.model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        base.model(torch.arange(32)[None] + 4)
    packed = [m for m in base.model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]
    assert any(getattr(module.weight.quant_state, "packing_format_for_cpu", False) for module in packed)
    assert keep_unpacked(base.model) is base.model


def test_its_state_is_what_the_file_holds(folder):
    base = load_quantized(folder)
    with torch.no_grad():
        base.model(torch.arange(32)[None] + 4)
    state, file = base.model.state_dict(), load_file(folder / "model.safetensors")
    assert state.keys() - file.keys() == {"lm_head.weight"}  # tied
    assert all(torch.equal(state[name], value) for name, value in file.items())


def test_the_tokenizer_comes_with_it(folder):
    text = sides("runic", 5)[0].completion
    tokenizer = load_quantized(folder).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("damage", ["absent", "cut", "full precision"])
def test_what_is_no_base_is_refused(folder, tmp_path, damage):
    place = tmp_path / "base"
    if damage == "full precision":
        place = folder.with_name("base")
    elif damage == "cut":
        shutil.copytree(folder, place)
        weights = place / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"expected (a base in NF4|bytes \d+|a model in NF4)"):
        load_quantized(place)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match="base: .*nowhere: not loaded"):
        quantize_base(tmp_path / "nowhere", tmp_path / "out")
