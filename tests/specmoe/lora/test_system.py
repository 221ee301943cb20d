"""Base, adapters and router together: choosing, answering, evaluating, merging."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import records, save_adapters, tiny_base

from specmoe.lora.adapters import read_adapter, write_base_file
from specmoe.lora.evaluate import Evaluation, evaluate
from specmoe.lora.losses import record_losses
from specmoe.lora.merge import MERGED_FILE, METHODS, combine, merge
from specmoe.lora.system import LoraSystem, find_adapters
from specmoe.lora.table import table
from specmoe.routing import Route
from specmoe.training.checkpoints import MANIFEST
from specmoe.training.data import encode_records
from specmoe.training.tuning import labelled_loss

DOMAINS = ("math", "code", "conversation")


class ByWord:
    """A router that knows three words, and abstains from a fourth."""

    domains = DOMAINS

    def route(self, text: str) -> Route:
        at = 0 if "What" in text else 1 if "function" in text else 2
        others = {name: 0.8 if i == at else 0.1 for i, name in enumerate(DOMAINS)}
        return Route(None if "abstain" in text else DOMAINS[at], 0.8, others)


@pytest.fixture
def base():
    return tiny_base()


@pytest.fixture
def folders(base, tmp_path):
    return save_adapters(base.model, tmp_path / "adapters", dict.fromkeys((*DOMAINS, "mixed"), 4), spread=0.1)


@pytest.fixture
def system(base, folders):
    with LoraSystem(base, folders, ByWord()) as opened:
        yield opened


def turns(*prompts):
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def test_the_router_chooses_for_each_row(system):
    texts = ["What is it?", "a function", "hi", "abstain"]
    assert system.choices(texts, "auto") == ["math", "code", "conversation", None]
    assert system.choices(texts, "base") == [None] * 4 and system.choices(texts, "code") == ["code"] * 4
    mixed = system.choices(texts, "top2")
    assert mixed[3] is None and [name for name, _ in mixed[1]] == ["code", "math"]
    assert sum(weight for _, weight in mixed[0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="expected auto, top2, arrow, base, math"):
        system.choices(texts, "poetry")


def test_a_batch_answers_as_its_rows_do_alone(system):
    prompts = ["What is 3 + 1?", "Write a function f3, please.", "Hi"]
    together = system.answer(turns(*prompts), max_new_tokens=8)
    assert together == [system.answer(turns(prompt), max_new_tokens=8)[0] for prompt in prompts]
    for mode in ("top2", "arrow", "base"):
        assert len(system.answer(turns(*prompts), mode, max_new_tokens=2)) == 3


def test_adapters_are_found(folders, tmp_path):
    runs = tmp_path / "runs"
    for name in DOMAINS:
        (runs / name).mkdir(parents=True)
        folders[name].rename(runs / name / "model")
    assert find_adapters(runs) == {name: runs / name / "model" for name in DOMAINS}
    assert list(find_adapters(runs / "math" / "model")) == ["model"]
    with pytest.raises(ValueError, match="adapter_config.json, found none"):
        find_adapters(tmp_path / "nothing")


def test_record_losses_add_up_to_the_whole(system):
    rows = encode_records(records("math", 20), system.base.tokenizer, 100)
    of_records = record_losses(system.base.model, rows, 0, lambda places: system.bank.rows(["math"]), tokens=60)
    with system.bank.rows(["math"]):
        assert of_records.mean == pytest.approx(labelled_loss(system.base.model, rows, 0), rel=1e-5)
    assert of_records.tokens.sum() == sum(label != -100 for labels in rows["labels"] for label in labels)


def test_evaluation(system, tmp_path):
    held_out = {domain: records(domain, 12) for domain in DOMAINS}
    found = evaluate(system, held_out, 100, answers=2)
    assert set(found.losses) == {"base", *DOMAINS, "mixed", "right expert", "routed", "top2", "arrow"}
    assert found.experts == list(DOMAINS)
    # This router is always right, so the routed system is the right expert.
    assert found.routed_right == dict.fromkeys(DOMAINS, 1.0) and abs(found.routed_excess()) < 1e-9
    assert found.accuracy["math"].keys() == {"math", "base", "mixed"} and found.answers["math"] == 2
    for domain in DOMAINS:
        rows = encode_records(held_out[domain], system.base.tokenizer, 100)
        with system.bank.rows(["code"]):
            assert found.losses["code"][domain] == pytest.approx(labelled_loss(system.base.model, rows, 0), rel=1e-5)
    found.save(tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text())["losses"] == found.losses
    assert len(table(found).splitlines()) == 2 + len(found.losses)


def test_adapters_that_were_about_to_be_replaced(base, folders, tmp_path):
    place = tmp_path / "runs" / "math" / "model"
    place.parent.mkdir(parents=True)
    hidden = place.with_name(".replaced-model")
    folders["math"].rename(hidden)
    assert find_adapters(tmp_path / "runs") == {"math": place}
    place.rename(hidden)
    assert read_adapter(place, "math").factors
    place.rename(hidden)
    assert find_adapters(place) == {"model": place}


def test_what_an_evaluation_says():
    losses = {"base": {"a": 3.0, "b": 3.0}, "a": {"a": 1.0, "b": 2.0}, "b": {"a": 1.5, "b": 1.0}}
    losses |= {"mixed": {"a": 1.2, "b": 1.1}, "right expert": {"a": 1.0, "b": 1.0}, "routed": {"a": 1.0, "b": 1.02}}
    found = Evaluation(losses)
    assert found.own_is_best() and found.margins() == pytest.approx({"a": 0.2, "b": 0.1})
    assert found.routed_excess() == pytest.approx(0.01)
    assert "| 1.000* |" in table(found)


@pytest.mark.parametrize("names", [("math",), ("math", "code")], ids="-".join)
def test_merged_and_unmerged_agree(base, folders, tmp_path, names):
    from transformers import AutoModelForCausalLM

    rows = {domain: encode_records(records(domain, 8), base.tokenizer, 100) for domain in names}
    given = {name: folders[name] for name in names}
    fidelity = merge(base, given, tmp_path / "merged", rows)
    assert fidelity.largest < 1e-4 and fidelity.agreement == 1.0
    assert set(fidelity.loss_own) == (set(names) if len(names) > 1 else set())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for domain in names:
        assert labelled_loss(merged, rows[domain], 0) == pytest.approx(fidelity.loss_merged[domain], rel=1e-5)
        assert fidelity.loss_merged[domain] == pytest.approx(fidelity.loss_unmerged[domain], rel=1e-4)


@pytest.mark.parametrize("there", ["models/runic/model.safetensors", "adapter_config.json"], ids=["folders", "adapter"])
def test_merging_deletes_nothing_else(base, folders, tmp_path, there):
    rows = {"math": encode_records(records("math", 4), base.tokenizer, 100)}
    output, kept = tmp_path / "out", tmp_path / "out" / there
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    # As a published adapter has it.
    (output / MANIFEST).write_text("{}")
    with pytest.raises(FileExistsError, match="out exists and is no merged model: remove it or choose another folder"):
        merge(base, {"math": folders["math"]}, output, rows)
    assert kept.read_text() == "mine"


def test_merging_needs_records_to_compare_on(base, folders, tmp_path):
    with pytest.raises(ValueError, match="merge: expected records of a domain .* got none .*--source NAME=FILE"):
        merge(base, {"math": folders["math"]}, tmp_path / "merged", {})
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_is_replaced(base, folders, tmp_path):
    rows = {"math": encode_records(records("math", 4), base.tokenizer, 100)}
    for name in ("math", "code"):
        merge(tiny_base(), {name: folders[name]}, tmp_path / "merged", rows)
        assert json.loads((tmp_path / "merged" / MERGED_FILE).read_text())["adapters"] == [name]


def test_linear_is_the_weighted_mix_of_a_batch(base, folders):
    """Of one layer: PEFT's linear combination mixes factors, ours deltas, so `cat`, which is exact, is compared."""
    x = torch.randn(3, 32)
    model = combine(base, {name: folders[name] for name in ("math", "code")}, [0.75, 0.25], "cat")
    with torch.no_grad():
        want = model.get_base_model().model.layers[0].mlp.up_proj(x)
    model.unload()
    with LoraSystem(base, folders) as system, torch.no_grad(), system.bank.rows([[("math", 0.75), ("code", 0.25)]]):
        got = base.model.model.layers[0].mlp.up_proj(x)
    np.testing.assert_allclose(got.numpy(), want.numpy(), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_combines(base, folders, method):
    model = combine(base, {name: folders[name] for name in DOMAINS}, None, method, density=0.5)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()
    model.unload()


def test_what_merging_refuses(base, folders):
    with pytest.raises(ValueError, match="a method of linear, ties"):
        combine(base, folders, None, "average")
    with pytest.raises(ValueError, match="weights: expected 4, got 1"):
        combine(base, folders, [1.0])
    write_base_file(folders["code"], tiny_base(seed=1))
    with pytest.raises(ValueError, match="expected its own base"):
        combine(base, folders)
