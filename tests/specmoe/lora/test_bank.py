"""Mixed batches against PEFT's."""

from __future__ import annotations

import contextlib
import copy
import statistics

import pytest
import torch
from tiny import peft_model, save_adapters, tiny_model

from moe_kernels.testing import relative_error
from specmoe.decoding import generate
from specmoe.lora.adapters import read_adapter, write_adapter
from specmoe.lora.bank import AdapterBank
from specmoe.lora.base import Base
from specmoe.specialists.bases.packing import keep_unpacked

RANKS = {"same": {"math": 4, "code": 4, "talk": 4}, "mixed": {"math": 4, "code": 8, "talk": 2}}
ROWS = ["math", "talk", None, "code", "math"]


@pytest.fixture(params=RANKS)
def pair(request, tmp_path):
    """A bank over some adapters, and PEFT's model with the same ones."""
    model = tiny_model()
    places = save_adapters(copy.deepcopy(model), tmp_path, RANKS[request.param])
    theirs = peft_model(copy.deepcopy(model), places)
    bank = AdapterBank(model, [read_adapter(path, name) for name, path in places.items()])
    return bank, theirs


def batch(rows=5, length=7, seed=2):
    torch.manual_seed(seed)
    ids = torch.randint(4, 300, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def names(rows):
    return ["__base__" if row is None else row for row in rows]


def exact(theirs):
    """Returns PEFT's logits in float64."""
    return copy.deepcopy(theirs).double()(**batch(), adapter_names=names(ROWS)).logits


def assert_as_near(got, theirs, exact):
    """Requires logits to be at most twice as far from float64 as PEFT's: what rounding does to a model varies."""
    seen = batch()["attention_mask"].bool()
    assert relative_error(got[seen], exact[seen]) <= 2 * relative_error(theirs[seen], exact[seen])


@torch.no_grad()
def test_mixed_batch_is_pefts(pair):
    bank, theirs = pair
    with bank.rows(ROWS):
        got = bank.model(**batch()).logits
    assert_as_near(got, theirs(**batch(), adapter_names=names(ROWS)).logits, exact(theirs))


@torch.no_grad()
def test_generate_is_pefts(pair):
    bank, theirs = pair
    options = {"max_new_tokens": 6, "do_sample": False}
    with bank.rows(ROWS):
        got = bank.model.generate(**batch(), **options)
    assert torch.equal(got, theirs.generate(**batch(), adapter_names=names(ROWS), **options))


@torch.no_grad()
def test_our_generation_is_pefts_too(pair):
    bank, theirs = pair
    options = {"max_new_tokens": 12, "do_sample": False}
    with bank.rows(ROWS):
        got = generate(bank.model, **batch(), **options)
    assert torch.equal(got, theirs.generate(**batch(), adapter_names=names(ROWS), **options))


BOUND = {
    "rows": lambda bank: bank.rows(["math", None, [("talk", 0.3), ("code", 0.7)], "code"]),
    "one": lambda bank: bank.rows(["talk"]),
    "base": lambda bank: bank.rows([None]),
    "none": lambda bank: contextlib.nullcontext(),
}


@torch.no_grad()
@pytest.mark.parametrize("choice", BOUND)
def test_a_bound_layer_is_the_layer(pair, choice):
    bank, _ = pair
    torch.manual_seed(0)
    with BOUND[choice](bank):
        for name, layer in bank.layers.items():
            x = torch.randn(12, layer.base.in_features)
            bound = layer.bound(12)
            assert bound is not None and relative_error(bound(x), layer(x)) < 1e-6, name


@torch.no_grad()
def test_what_is_not_bound(pair):
    bank, _ = pair
    layer = next(iter(bank.layers.values()))
    assert layer.bound(4) is not None
    with bank.arrow(top_k=2):
        assert layer.bound(4) is None
    with torch.enable_grad():
        assert layer.bound(4) is None
    for hooked in (layer, layer.base):
        with hooked.register_forward_pre_hook(lambda module, given: None):
            assert layer.bound(4) is None
    with torch.nn.modules.module.register_module_forward_hook(lambda module, given, found: None):
        assert layer.bound(4) is None
    layer.base.forward = layer.base.forward
    assert layer.bound(4) is None
    with bank.rows(["math", None]), pytest.raises(ValueError, match="a batch of 2 rows, got 3"):
        layer.base.__dict__.pop("forward")
        layer.bound(3)


@torch.no_grad()
def test_outside_of_the_block_it_is_the_base(pair):
    bank, theirs = pair
    got = bank.model(**batch()).logits
    with theirs.disable_adapter():
        want = theirs(**batch()).logits
    assert torch.equal(got, want)
    with bank.rows([None]):
        assert torch.equal(bank.model(**batch()).logits, want)
    bank.close()
    assert not any("MixedLinear" in type(module).__name__ for module in bank.model.modules())
    assert torch.equal(bank.model(**batch()).logits, want)


@torch.no_grad()
def test_weights_mix_deltas(pair):
    bank, theirs = pair
    layer = next(iter(bank.layers.values()))
    rows = torch.randn(6, layer.base.in_features)
    deltas = {}
    for name in ("math", "code"):
        with bank.rows([name]):
            deltas[name] = layer(rows) - layer.base(rows)
    with bank.rows([[("math", 0.75), ("code", 0.25)], "code"]):
        got = layer(rows) - layer.base(rows)
    want = torch.cat([0.75 * deltas["math"][:3] + 0.25 * deltas["code"][:3], deltas["code"][3:]])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_choice_serves_beams_and_any_batch(pair):
    bank, _ = pair
    with bank.rows(["math", "code"]):
        got = bank.model.generate(**batch(2), max_new_tokens=4, num_beams=2, do_sample=False)
    for row, name in enumerate(("math", "code")):
        with bank.rows([name]):
            one = {key: value[row : row + 1] for key, value in batch(2).items()}
            alone = bank.model.generate(**one, max_new_tokens=4, num_beams=2, do_sample=False)
        assert torch.equal(got[row : row + 1], alone)


@torch.no_grad()
@pytest.mark.parametrize("format", ["float32", "nf4"])
def test_under_autocast(tmp_path, format):
    model = tiny_model()
    places = save_adapters(copy.deepcopy(model), tmp_path, {"math": 4, "code": 4, "talk": 4})
    if format == "nf4":
        bnb = pytest.importorskip("bitsandbytes")
        for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]:
            if "proj" in name:
                packed = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
                packed.load_state_dict(layer.state_dict())
                model.set_submodule(name, packed.to("cpu"))
        keep_unpacked(model.eval())
    bank = AdapterBank(model, [read_adapter(path, name) for name, path in places.items()])
    with bank.rows(ROWS):
        want = bank.model(**batch()).logits
        with torch.autocast("cpu", torch.bfloat16):
            got = bank.model(**batch()).logits
    seen = batch()["attention_mask"].bool()
    assert relative_error(got[seen], want[seen]) < 0.05


def summed_loss(logits, labels):
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def separate_gradients(theirs, rows, given, labels):
    """Returns the gradients of A and B of every adapter, each from a step of its own rows alone."""
    found = {}
    for name in sorted(set(rows)):
        chosen = torch.tensor([row == name for row in rows])
        theirs.set_adapter(name)
        theirs.zero_grad()
        part = theirs(**{key: value[chosen] for key, value in given.items()}).logits
        summed_loss(part, labels[chosen]).backward()
        for key, parameter in theirs.get_base_model().named_parameters():
            if f".{name}." in key:
                found[key] = parameter.grad.clone()
    return found


def test_a_mixed_step_has_the_gradients_of_separate_ones(pair):
    bank, theirs = pair
    rows = ["math", "talk", "code", "math"]
    assert len(bank.trainable()) == 2 * len(bank.layers)
    # What rounding does to the gradient of one draw varies five-fold either way: six of them are judged.
    errors = {name: [] for name in bank.names}
    for seed in range(2, 8):
        for name, ours, apart in gradient_errors(bank, theirs, rows, batch(len(rows), seed=seed)):
            errors[name].append((ours, apart))
    for name, pairs in errors.items():
        ours, apart = (statistics.geometric_mean(values) for values in zip(*pairs, strict=True))
        assert ours <= 2 * apart, name


def gradient_errors(bank, theirs, rows, given):
    """Yields each adapter's name and how far its gradients are from float64: the mixed step's, and separate steps'."""
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    for parameter in bank.trainable():
        parameter.grad = None
    with bank.rows(rows):
        summed_loss(bank.model(**given).logits, labels).backward()

    apart = separate_gradients(theirs, rows, given, labels)
    exact = separate_gradients(copy.deepcopy(theirs).double(), rows, given, labels)
    for name in bank.names:
        keys = [key for key in apart if f".{name}." in key]
        got, near, want = (
            torch.cat([part.flatten() for part in parts])
            for parts in ([stacked_gradient(bank, key, apart[key].shape) for key in keys],
                          [apart[key] for key in keys], [exact[key] for key in keys])
        )  # fmt: skip
        yield name, relative_error(got, want), relative_error(near, want)


def stacked_gradient(bank, key, shape):
    """Returns the bank's gradient of one of PEFT's factors; that of the padding must be zero."""
    path, which, name, _ = key.rsplit(".", 3)
    layer, g = bank.layers[path], bank.names.index(name)
    grad = getattr(layer, which[-1]).grad[g]
    assert not grad[shape[0] :].any() and not grad[:, shape[1] :].any()
    return grad[: shape[0], : shape[1]]


def test_an_adapter_goes_back_to_peft(pair, tmp_path):
    bank, theirs = pair
    base = Base(bank.model, None, "tiny", "digest")
    for name in bank.names:
        write_adapter(bank.adapter(name), tmp_path / name, base)
        again = read_adapter(tmp_path / name, name, base)
        assert again.scaling == pytest.approx(bank.adapter(name).scaling)
        for layer, factors in bank.adapter(name).factors.items():
            assert all(torch.equal(one, other) for one, other in zip(factors, again.factors[layer], strict=True))
    bank.close()
    loaded = peft_model(bank.model, {name: tmp_path / name for name in bank.names})
    with torch.no_grad():
        got, want = (model(**batch(), adapter_names=names(ROWS)).logits for model in (loaded, theirs))
    torch.testing.assert_close(got, want)


def test_errors(tmp_path):
    model = tiny_model()
    places = save_adapters(copy.deepcopy(model), tmp_path, {"math": 2})
    adapter = read_adapter(places["math"], "math")
    with pytest.raises(ValueError, match="different names"):
        AdapterBank(model, [adapter, adapter])
    with pytest.raises(ValueError, match="different names, got none"):
        AdapterBank(model, [])
    bank = AdapterBank(model, [adapter])
    with pytest.raises(ValueError, match="expected one of math, got 'code'"), bank.rows(["code"]):
        pass
    with pytest.raises(ValueError, match="batch of 2 rows"), bank.rows(["math", "math"]):
        model(**batch(3, 5))
