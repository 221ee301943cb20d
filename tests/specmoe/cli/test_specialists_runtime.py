"""`specmoe specialists query`, `chat`, `correct`, `revert` and `merge` with tiny untrained models."""

from __future__ import annotations

import io
import json
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "specialists"))

COMMANDS = {
    "query": ["query", "Convert to LC-R: [1]"],
    "option": ["--query", "Convert to LC-R: [1]"],
    "chat": ["chat"],
    "correct": ["correct", "Cattle: [1, 2]", "🐃1, 2🐄"],
    "revert": ["revert"],
    "merge": ["merge", "runic", "--output", "merged"],
}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    from tiny_family import save_family

    return save_family(tmp_path_factory.mktemp("family"), spread=0.02)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """Untrained models never end what they say; and what is told to type is none."""
    import specmoe.specialists.runtime.generation as module

    monkeypatch.setattr(module, "_GROWTH", 0)
    monkeypatch.setattr(module, "_MORE", 6)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    # A shell that starts the tests in the background has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def knowing(monkeypatch):
    """Models that know one answer."""
    from specmoe.specialists.runtime import Reply
    from specmoe.specialists.runtime.generation import Asking

    monkeypatch.setattr(Asking, "__call__", lambda self, asks: [Reply("🐃1, 2🐄") for _ in asks])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_family(specmoe, tmp_path, command):
    where = ["--family", tmp_path / "none"]
    given = COMMANDS[command]
    outcome = specmoe("specialists", *(given if command != "option" else []), *where, *(given * (command == "option")))
    assert outcome.code == 1, outcome
    assert "found no such folder: `specmoe specialists train all` makes one" in outcome.err
    assert outcome.err.count("\n") == 1


def test_query(specmoe, family, knowing):
    outcome = specmoe("specialists", "query", "Convert to LC-R: [1, 2]", "--family", family, "--memory", "64GiB")
    assert outcome.code == 0, outcome.err
    assert outcome.out == "🐃1, 2🐄\n  [runic, 100% sure, verified]\n"
    short = specmoe("specialists", "--family", family, "--memory", "64GiB", "--query", "Convert to LC-R: [1, 2]")
    assert (short.code, short.out) == (0, outcome.out)


def test_query_without_an_answer(specmoe, family, knowing):
    options = ["--family", family, "--memory", "64GiB", "--samples", 1, "--explain"]
    outcome = specmoe("specialists", "query", "Convert to LC-R: [1, 3]", "", *options)
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    assert lines[0].startswith("no answer: no answer of 4 was right: the answer means [1, 2]")
    assert "  route: runic (100%: hlxl to lc-r)" in lines
    assert "  runic, drawn: 🐃1, 2🐄 (the answer means [1, 2], the query's value [1, 3])" in lines
    assert "no answer: the query is empty" in lines


def test_a_budget_too_small(specmoe, family):
    outcome = specmoe("specialists", "query", "x", "--family", family, "--memory", "1MiB")
    assert outcome.code == 2 and "memory: expected at least" in outcome.err and "the process's own" in outcome.err


def test_help_without_a_command(specmoe):
    outcome = specmoe("specialists")
    assert "chat" in outcome.out and "--query" in outcome.out


def chat(specmoe, monkeypatch, family, *lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return specmoe("specialists", "chat", "--family", family, "--memory", "64GiB", "--samples", 1)


def test_chat_survives_nonsense(specmoe, monkeypatch, family):
    nonsense = [
        "/correct x",
        "",
        "   ",
        "\0\x1b[2J",
        "[[[[",
        "x" * 200_000,
        "(" * 4000,
        "/what",
        "/why",
        "/",
    ]
    outcome = chat(specmoe, monkeypatch, family, *nonsense, "Hello", "/why", "/memory", "/revert")
    assert outcome.code == 0, outcome.err
    assert "expected a query of at most 4096 characters, got 200,000" in outcome.out
    assert "there is no answer to correct yet" in outcome.out and "/correct ANSWER, /revert, /why" in outcome.out
    assert "route: coordinator" in outcome.out and "in memory: " in outcome.out
    assert "error: revert: expected a correction that was kept" in outcome.err


def test_chat_ends_with_the_input_and_with_quit(specmoe, monkeypatch, family, knowing):
    assert chat(specmoe, monkeypatch, family).code == 0
    outcome = chat(specmoe, monkeypatch, family, "Convert to LC-R: [1, 2]", "/quit", "Convert to LC-R: [1, 2]")
    assert outcome.out.count("🐃1, 2🐄") == 1


def test_ctrl_c_drops_one_answer(specmoe, monkeypatch, family):
    from specmoe.specialists.runtime import Reply
    from specmoe.specialists.runtime.generation import Asking

    def ask(self, asks):
        if asks[0].text == "Hello":
            signal.raise_signal(signal.SIGINT)
        return [Reply("🐃1, 2🐄") for _ in asks]

    monkeypatch.setattr(Asking, "__call__", ask)
    outcome = chat(specmoe, monkeypatch, family, "Hello", "Convert to LC-R: [1, 2]")
    assert outcome.code == 0
    assert "interrupted; Ctrl-D ends" in outcome.err and "🐃1, 2🐄" in outcome.out


def test_a_model_that_vanishes_while_chatting(specmoe, monkeypatch, family, tmp_path):
    import shutil

    copy = Path(shutil.copytree(family, tmp_path / "family"))
    weights = copy / "runic" / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    outcome = chat(specmoe, monkeypatch, copy, "Convert to LC-R: [1, 2]", "Hello")
    assert outcome.code == 0 and "adapter_model.safetensors: expected" in outcome.err
    assert outcome.out.strip()


def test_correct_and_revert(specmoe, family, tmp_path, monkeypatch):
    import shutil

    copy = Path(shutil.copytree(family, tmp_path / "family"))
    options = ["--family", copy, "--memory", "64GiB"]
    import specmoe.specialists.learning as learning

    monkeypatch.setattr(learning, "UpdateSettings", partial(learning.UpdateSettings, examples=4, held_out=4, replay=4))
    outcome = specmoe("specialists", "correct", "Cattle: [1, 2]", "🐃1, 2🐄", "--steps", 1, *options)
    assert outcome.code == 1, outcome.err
    assert "correction 1 for coordinator: stored but not learned, the adapter is as it was: it still" in outcome.out
    assert (
        json.loads((copy / "corrections.jsonl").read_text(encoding="utf-8").splitlines()[0])["correction"]["number"]
        == 1
    )
    outcome = specmoe("specialists", "revert", *options)
    assert outcome.code == 2 and "expected a correction that was kept" in outcome.err
    outcome = specmoe("specialists", "correct", "Convert to LC-R: [1, 2]", "🐃1🐄", *options)
    assert outcome.code == 2 and "expected the query's value in LC-R" in outcome.err


def test_merge(specmoe, family, tmp_path):
    output = tmp_path / "merged"
    outcome = specmoe("specialists", "merge", "runic", "--output", output, "--family", family, "--examples", 4)
    assert outcome.code == 0, outcome.err
    assert "the likeliest token agrees in 100.00%" in outcome.out and "times less time" in outcome.out
    report = json.loads((tmp_path / "merged.fidelity.json").read_text())
    assert report["fidelity"]["largest"] < 1e-3
    outcome = specmoe("specialists", "merge", "runic", "--output", family, "--family", family)
    assert outcome.code == 2 and "exists and is no merged model" in outcome.err and (family / "runic").is_dir()
    outcome = specmoe("specialists", "merge", "gpu", "--output", output, "--family", family)
    assert outcome.code == 1 and "expected a specialist with an adapter among coordinator, ascii, runic" in outcome.err
