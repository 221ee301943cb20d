"""`specmoe specialists`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_corpus(specmoe, tmp_path):
    outcome = specmoe("specialists", "corpus", "--output", tmp_path, "--size", 12, "--test-size", 6, "--only", "ascii")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == f"{tmp_path / 'ascii.train.jsonl'}: 12 examples"
    rows = [json.loads(line) for line in (tmp_path / "ascii.test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6
    keys = {"prompt", "completion", "kind", "source", "target", "answer", "route", "domain", "shape", "phrasing"}
    assert set(rows[0]) == keys
    assert json.loads((tmp_path / "corpus.json").read_text())["seed"] == 0


def test_an_unknown_specialist(specmoe, tmp_path):
    outcome = specmoe("specialists", "corpus", "--output", tmp_path, "--only", "x")
    assert outcome.code == 2
    assert "specialist: expected coordinator, ascii, runic, gpu, got 'x'" in outcome.err


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "specialists"))
    from tiny_base import save_tiny

    return save_tiny(tmp_path / "base")


def test_train_and_test(specmoe, base, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from specmoe.specialists.runtime import router

    monkeypatch.setattr(router, "_ROUTER_PROMPTS", 40)
    family = tmp_path / "family"
    train = ("specialists", "train", "coordinator", "runic", "--base", base, "--output", family, "--no-progress")
    sizes = ("--examples", 32, "--steps", 2, "--device", "cpu")
    outcome = specmoe(*train, *sizes)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("not paged") == 1
    assert [line.split(":")[0] for line in outcome.out.splitlines()] == ["coordinator", "runic"]
    again = specmoe(*train, *sizes)
    assert (again.code, "holds an earlier run" in again.err) == (2, True)
    resumed = specmoe(*train, *sizes, "--resume")
    assert resumed.out == outcome.out

    outcome = specmoe("specialists", "test", "--family", family, "--size", 8, "--no-progress")
    assert outcome.code == 0, outcome.err
    assert "| coordinator | 4 |" in outcome.out
    assert json.loads((family / "evaluation.json").read_text())["figures"]["conversions"] == 8


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train",), "expected one or more of coordinator, ascii, runic, gpu, all, got none"),
        (("train", "elvish"), "got 'elvish'"),
        (("train", "runic", "--device", "abacus"), "device: expected auto, cuda or cpu, got 'abacus'"),
        (("train", "runic", "--base", "/nowhere"), "base: /nowhere: not loaded"),
        (("test", "--family", "/nowhere"), "expected family.json"),
    ],
)
def test_what_cannot_be_done_says_why(specmoe, tmp_path, arguments, told):
    extra = ("--output", tmp_path / "family") if arguments[0] == "train" else ()
    outcome = specmoe("specialists", *arguments, *extra)
    assert outcome.code == 2
    assert told in outcome.err
