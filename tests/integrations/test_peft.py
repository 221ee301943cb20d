"""LoRA on experts: the low-rank form against PEFT's own, and what it adds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from models import MODELS, mixtral, tokens

import moe_kernels
from moe_kernels.testing import assert_close, relative_error

peft = pytest.importorskip("peft", minversion="0.17")

TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def _config(rank=4, targets=None):
    return peft.LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj"], target_parameters=targets or TARGETS)


def _randomize(model, adapter):
    torch.manual_seed(len(adapter))
    for name, value in model.named_parameters():
        if f".{adapter}." in name:
            torch.nn.init.normal_(value, std=0.1)


def adapted(name="mixtral", implementation="moe_kernels", **options):
    model = peft.get_peft_model(MODELS[name](), _config(**options)).eval()
    _randomize(model, "default")
    model.base_model.model.set_experts_implementation(implementation)
    return model


def _step(model):
    out = model(tokens(), labels=tokens())
    out.loss.backward()
    return out.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:1], TARGETS[1:]], ids=["both", "up", "down"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_peft(name, targets):
    want, want_grads = _step(adapted(name, "eager", targets=targets))
    got, grads = _step(adapted(name, targets=targets))
    assert_close(got, want)
    assert grads.keys() == want_grads.keys() and len(grads) == 4 + 4 * len(targets)
    for parameter, gradient in want_grads.items():
        assert_close(grads[parameter], gradient, what=parameter)


@torch.no_grad()
def test_routing_weights_of_all_experts():
    """As some models of transformers 5.0 have them."""
    experts = adapted().base_model.model.model.layers[0].mlp.experts
    x, weights = torch.randn(5, 64), torch.rand(5, 4)
    indices = weights.topk(2).indices
    assert torch.equal(experts(x, indices, weights), experts(x, indices, weights.gather(1, indices)))


def test_the_experts_stay_as_they_are(monkeypatch):
    import peft.tuners.lora.layer as layer

    def refuse(*_):
        raise AssertionError("a full-size delta was made")

    monkeypatch.setattr(layer.ParamWrapper, "_activate_lora", refuse)
    _step(adapted())


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-to-peft", "peft-to-ours"])
@pytest.mark.parametrize("name", MODELS)
def test_adapters_are_pefts(name, ours_first, tmp_path):
    implementations = ("moe_kernels", "eager") if ours_first else ("eager", "moe_kernels")
    model = adapted(name, implementation=implementations[0])
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(MODELS[name](), tmp_path).eval()
    loaded.base_model.model.set_experts_implementation(implementations[1])
    with torch.no_grad():
        assert_close(loaded(tokens()).logits, model(tokens()).logits)


def _with_two_adapters():
    model = adapted()
    model.add_adapter("second", _config(rank=3))
    _randomize(model, "second")
    return model


@torch.no_grad()
def _alone(model, adapter):
    model.set_adapter(adapter)
    return model(tokens()).logits


@pytest.mark.parametrize("format", [None, "nf4", "int8"])
@torch.no_grad()
def test_several_adapters_in_one_batch(format):
    model = _with_two_adapters()
    if format is not None:
        moe_kernels.quantize_experts(model, format)
    first, second = _alone(model, "default"), _alone(model, "second")
    with model.disable_adapter():
        base = model(tokens()).logits
    for names, want in (
        (["second", "default"], (second[0], first[1])),
        (["__base__", "second"], (base[0], second[1])),
        (["__base__", "__base__"], (base[0], base[1])),
    ):
        assert_close(model(tokens(), adapter_names=names).logits, torch.stack(want), what=str(names))


@torch.no_grad()
def test_several_active_adapters_add_up():
    model = _with_two_adapters()
    model.base_model.set_adapter(["default", "second"])
    got = model(tokens()).logits
    model.base_model.model.set_experts_implementation("eager")
    assert_close(got, model(tokens()).logits)


@torch.no_grad()
def test_merged():
    model = adapted()
    want = model(tokens()).logits
    model.merge_adapter()
    assert_close(model(tokens()).logits, want)
    model.unmerge_adapter()
    assert_close(model(tokens()).logits, want)


@pytest.mark.parametrize("format", ["nf4", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_over_quantized_experts(name, format):
    model = adapted(name)
    exact, exact_grads = _step(model)
    model.zero_grad()
    moe_kernels.quantize_experts(model, format)
    limit = 0.3 if format == "nf4" else 0.05
    for _ in range(2):
        with torch.no_grad():
            model(tokens())
        got, grads = _step(model)
        assert 0 < relative_error(got, exact) < limit
        assert grads.keys() == exact_grads.keys()
        for parameter, gradient in exact_grads.items():
            assert relative_error(grads[parameter], gradient) < 2 * limit, parameter
        model.zero_grad()


@pytest.mark.parametrize("other", ["rank", "model"])
@torch.no_grad()
def test_an_adapter_that_does_not_fit(other, tmp_path):
    rank, sizes = (3, {}) if other == "rank" else (4, {"num_local_experts": 3})
    foreign = peft.get_peft_model(mixtral(**sizes), _config(rank=rank))
    foreign.save_pretrained(tmp_path)
    if other == "rank":
        # Its file says another rank than its tensors have.
        config = tmp_path / "adapter_config.json"
        config.write_text(config.read_text().replace('"r": 3', '"r": 4'))
    model = mixtral()
    model.set_experts_implementation("moe_kernels")
    want = model(tokens()).logits
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(model, tmp_path)
    # PEFT leaves its wrappers behind, with deltas of zero.
    assert_close(model(tokens()).logits, want)


def test_clear_errors():
    model = _with_two_adapters()
    with pytest.raises(ValueError, match="third"):
        model(tokens(), adapter_names=["third", "default"])


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
@torch.no_grad()
def test_a_refusal_to_merge_leaves_the_model_as_it_was(merge):
    model = adapted()
    moe_kernels.quantize_experts(model, "nf4")
    want, before = model(tokens()).logits, _state(model)
    with pytest.raises(ValueError, match="merge: .*_proj: expected experts that are not quantized"):
        getattr(model, merge)()
    after = _state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model(tokens()).logits, want)
    # Nothing is merged: there is nothing to refuse.
    model.unmerge_adapter()


@pytest.mark.parametrize("how", ["first", "second", "loaded"])
def test_adapters_are_added_before_quantizing(how, tmp_path):
    model = adapted() if how == "second" else mixtral()
    if how == "loaded":
        adapted().save_pretrained(tmp_path)
    moe_kernels.quantize_experts(model, "int8")
    before = _state(model)
    told = r"LoRA: .*layers.0.mlp.experts.gate_up_proj: expected adapters that were added before quantizing"
    with pytest.raises(ValueError, match=told):
        if how == "loaded":
            peft.PeftModel.from_pretrained(model, tmp_path)
        elif how == "first":
            peft.get_peft_model(model, _config())
        else:
            model.add_adapter("second", _config(rank=3))
    assert before.keys() == _state(model).keys()
    # What does not name the experts is welcome.
    attention = peft.LoraConfig(r=4, target_modules=["q_proj"])
    if how == "second":
        model.add_adapter("second", attention)
    else:
        peft.get_peft_model(model, attention)


@torch.no_grad()
def test_merged_and_then_quantized():
    model = adapted()
    model.merge_adapter()
    want = model(tokens()).logits
    moe_kernels.quantize_experts(model, "int8")
    assert 0 < relative_error(model(tokens()).logits, want) < 0.05
    with pytest.raises(ValueError, match="unmerge: .*expected experts that are not quantized"):
        model.unmerge_adapter()
    # The attention has not been unmerged either.
    assert all(module.merged for module in model.modules() if hasattr(module, "merged"))


def _moe_layer(**options):
    """Fresh adapters over the experts of a `MoELayer`, and a call of these."""
    torch.manual_seed(0)
    layer = torch.nn.ModuleDict({"moe": moe_kernels.MoELayer(64, 128, 4, 2, **options)})
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    model = peft.get_peft_model(layer, peft.LoraConfig(r=4, target_modules=[], target_parameters=targets))
    x, indices, weights = torch.randn(9, 64), torch.rand(9, 4).topk(2).indices, torch.rand(9, 2)
    return model, lambda: layer["moe"].experts(x, indices, weights)


@pytest.mark.parametrize("format", [None, "int8"])
def test_the_backend_of_the_layer_serves_its_adapters(format, monkeypatch):
    from moe_kernels import registry

    model, call = _moe_layer(backend="reference")
    if format is not None:
        moe_kernels.quantize_experts(model, format)
    chosen, theirs = {}, registry.choose

    def choose(op, *arguments, **options):
        chosen[op] = theirs(op, *arguments, **options)
        return chosen[op]

    monkeypatch.setattr(registry, "choose", choose)
    call()
    assert {"route", "permute", "unpermute", "grouped_lora"} < chosen.keys() and set(chosen.values()) == {"reference"}


@pytest.mark.parametrize("format", [None, "int8"])
def test_batch_invariance_is_asked_for_under_adapters(format):
    model, call = _moe_layer(batch_invariant=True, backend="reference")
    if format is not None:
        moe_kernels.quantize_experts(model, format)
    # The reference cannot promise it.
    with pytest.raises(moe_kernels.BackendUnavailable, match="reference"):
        call()


@torch.no_grad()
def test_fresh_adapters_over_dynamic_int8_change_nothing():
    model, call = _moe_layer()
    moe_kernels.quantize_experts(model, "int8", dynamic=True)
    got = call()
    with model.disable_adapter():
        assert relative_error(got, call()) < 1e-3


def test_the_example_of_the_readme():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "LoraConfig" in block)
    model = mixtral()
    model.set_experts_implementation("moe_kernels")
    names = {"model": model, "moe_kernels": moe_kernels}
    exec(code, names)
    names["model"](tokens(), labels=tokens()).loss.backward()
    trained = [name for name, value in names["model"].named_parameters() if value.grad is not None]
    assert any("experts" in name for name in trained) and all("lora" in name for name in trained)


def test_patched_and_explained_under_adapters(capsys):
    model = adapted(implementation="eager")
    want = model(tokens()).logits
    assert {e.adapters for e in moe_kernels.explain(model)} == {
        "LoRA default (rank 4) in full size for every expert, by PEFT"
    }
    moe_kernels.patch(model, routers=True)
    assert_close(model(tokens()).logits, want)
    model.add_adapter("second", _config(rank=3))
    found = moe_kernels.explain(model)
    assert {e.adapters for e in found} == {
        "LoRA default (rank 4), second (rank 3) by grouped_lora between two grouped_mm"
    }
    assert all(e.router.startswith("topk_gating") for e in found) and len(found) == 2
    model.merge_adapter()
    assert "merged into the weights" in moe_kernels.explain(model)[0].adapters
    model.unmerge_adapter()
    moe_kernels.quantize_experts(model, "int8")
    assert "by grouped_lora" in moe_kernels.explain(model)[0].adapters
    assert "NOT USED" not in capsys.readouterr().out.splitlines()[-1]


def test_implementations_of_others_are_left_to_peft():
    model = adapted(implementation="eager")
    with pytest.raises(ValueError, match="mixed"):
        model(tokens(), adapter_names=["default", "default"])
