"""`specmoe lora`: train, eval, generate, merge, loop, on a tiny base."""

from __future__ import annotations

import json
import re

import pytest
from tiny import tiny_base
from typer.testing import CliRunner

from specmoe.cli.app import app

pytestmark = pytest.mark.usefixtures("small_domains")
FAST = ["--rank", "4", "--samples", "16", "--epochs", "1", "--batch-size", "4", "--precision", "float32"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a base in it."""
    base = tiny_base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, code=0):
    done = CliRunner().invoke(app, ["lora", *map(str, args)])
    assert done.exit_code == code, done.output
    return done.output


def test_from_training_to_merging(folder):
    said = run("train", "math", "code", "mixed", "--base", "base", *FAST)
    assert "math: validation loss" in said and "tokens/s" in said and "MiB of memory" in said
    # Nothing is left to do, and it is said again.
    assert "code: validation loss" in run("train", "math", "code", "--base", "base", *FAST, "--resume")

    said = run("eval", "--base", "base", "--records", 5, "--answers", 2, "--no-router")
    assert re.search(r"right answers, math, \d asked", said)
    assert [line.split()[1] for line in said.splitlines()[2:6]] == ["base", "math", "code", "mixed"]
    stored = json.loads((folder / "runs/lora/evaluation.json").read_text())
    assert set(stored["losses"]) == {"base", "math", "code", "mixed"} and "margins_over_mixed" in stored
    assert (folder / "runs/lora/evaluation.png").is_file()

    said = run("generate", "What is 2 + 1?", "Write a function f9.", "--base", "base", "--adapter", "math",
               "--max-new-tokens", 4)  # fmt: skip
    assert said.count("[math]") == 2
    assert "[arrow]" in run("generate", "Hi", "--base", "base", "--adapter", "arrow", "--max-new-tokens", 2)

    said = run("merge", "math", "code", "--base", "base", "--method", "ties", "--weights", "0.5,0.5", "--output", "out")
    assert "the likeliest token agrees in" in said and "math: loss" in said
    assert json.loads((folder / "out.fidelity.json").read_text())["agreement"] > 0.99
    assert (folder / "out" / "model.safetensors").is_file()


def test_the_loop_goes_on(folder):
    options = ["--base", "base", "--rank", "4", "--samples", "16", "--rounds"]
    assert "after 1 rounds" in run("loop", "math", *options, 1)
    assert "after 2 rounds" in run("loop", "math", *options, 2)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["train"], "expected domains, or --all"),
        (["train", "math", "--all"], "expected domains, or --all"),
        (["train", "poetry"], "expected domains among math"),
        (["train", "math", "--base", "base", "--rank", "2"], "rank: expected 4 to 64, got 2"),
        (["train", "math", "--source", "math"], "--source: expected DOMAIN=FILE"),
        (["train", "math", "--base", "base", "--source", "math=none.jsonl"], "expected a file, found none"),
        (["train", "math", "--base", "empty"], "base: empty: not loaded"),
        (["eval", "--adapters", "nothing", "--base", "base"], "adapter_config.json, found none"),
        (["merge", "math", "--adapters", "nothing", "--output", "x"], "adapter_config.json, found none"),
    ],
)
def test_errors_are_one_line(folder, args, told):
    (folder / "empty").mkdir()
    said = run(*args, code=2)
    assert told in said and "Traceback" not in said


def test_an_adapter_of_another_base_is_refused(folder):
    run("train", "math", "--base", "base", *FAST)
    other = tiny_base(seed=1)
    other.model.save_pretrained(folder / "other")
    other.tokenizer.save_pretrained(folder / "other")
    said = run("generate", "Hi", "--base", "other", "--adapter", "math", code=2)
    assert "expected its own base" in said
