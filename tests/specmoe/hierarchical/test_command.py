"""`specmoe hierarchical`."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from specmoe.cli.app import app
from specmoe.hierarchical.presets import AVERSE


@pytest.fixture
def run(tiny, monkeypatch, tmp_path):
    """Returns a function that runs `specmoe hierarchical` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECMOE_DEBUG", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["hierarchical", *map(str, arguments)])


def test_train_all_then_again(run, sources, tmp_path):
    data = [text for domain, source in sources.items() for text in ("--source", f"{domain}={source}")]
    outcome = run("train", *data, "--steps", 3, "--no-progress")
    assert outcome.exit_code == 0, outcome.output
    root = tmp_path / "runs" / "hierarchical"
    for name in ("math", "reasoning", "code", "conversation", "knowledge"):
        assert f"{name}: validation loss" in outcome.output
        wanted = {"checkpoints", "history.jsonl", "loss.png", "model"} | ({"plain"} if name in AVERSE else set())
        assert {path.name for path in (root / name).iterdir()} == wanted
    assert (root / "router" / "groups.npz").is_file()
    again = run("train", "--no-progress")
    assert again.exit_code == 0 and again.output.count("trained before, left as it is") == 5
    other = run("train", "--seed", 5)
    assert other.exit_code == 2 and "seed: expected 0 as the experts in" in other.output


def test_eval_writes_a_table_and_a_picture(run, trained_root, tmp_path):
    outcome = run("eval", "--experts", trained_root, "--prompts", 3, "--output", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert "beside always choosing the right expert" in outcome.output
    assert "greedy: stop rate" in outcome.output
    told = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert set(told["losses"]["math"]) == set(told["routed"])
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_demo_shows_the_routing_and_the_answer(run, trained_root):
    outcome = run("demo", "What is 2 + 3?", "--experts", trained_root, "--temperature", 0)
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.output.splitlines()
    assert lines[0] == "> What is 2 + 3?" and lines[1].startswith("  group:  ") and "math" in lines[2]
    assert run("demo", "What is 2 + 3?", "--experts", trained_root, "--temperature", 0).output == outcome.output
    assert run("demo", "--experts", trained_root).output.count("\n> ") >= 5


def test_embed_writes_features_and_says_the_domain(run, trained_root, tmp_path):
    outcome = run("embed", "Hello, I am number 3.", "--expert", "knowledge", "--experts", trained_root, "--each", 50)
    assert outcome.exit_code == 0, outcome.output
    assert "conversation: Hello, I am number 3." in outcome.output
    assert (tmp_path / "features.npz").is_file()


def test_loop_goes_on(run, trained_root, tmp_path):
    copy = shutil.copytree(trained_root, tmp_path / "copy")
    outcome = run("loop", "--expert", "code", "--experts", copy, "--rounds", 1, "--steps", 4, "--no-progress")
    assert outcome.exit_code == 0, outcome.output
    assert "code: round 1: validation loss" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--expert", "poetry"], "--expert: expected one of math, reasoning"),
        (["train", "--source", "math"], "--source: expected DOMAIN=SOURCE"),
        (["train", "--source", "poetry=a.csv"], "--source: expected DOMAIN=SOURCE"),
        (["train", "--source", "math=missing.csv"], "missing.csv: expected a file, found none"),
        (["train", "--preset", "large"], "preset: expected one of small, medium"),
        (["train", "--init", "gpt2", "--preset", "small"], "preset: expected one of small, medium, or --init alone"),
        (["eval"], "expected experts, found none"),
        (["demo", "hi"], "expected experts, found none"),
        (["loop"], "expected experts, found none"),
        (["embed", "--output", "features.txt"], "--output: expected a .npz file"),
        (["embed", "--expert", "all"], "--expert: expected one of"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line_and_2(run, tmp_path, arguments, message):
    outcome = run(*arguments)
    assert outcome.exit_code == 2, outcome.output
    assert message in outcome.output.splitlines()[-1]
    # Nothing is kept of what could not begin.
    assert not list(tmp_path.rglob("experts.json"))
