"""Runs the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from specmoe.cli.app import app


class Outcome(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def specmoe(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Returns a function that runs `specmoe` with the given arguments."""
    monkeypatch.delenv("SPECMOE_DEBUG", raising=False)

    def run(*arguments: Any) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app([str(argument) for argument in arguments])
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Returns a small text file."""
    path = tmp_path / "words.txt"
    path.write_text("the moon sees an old sea\n" * 60)
    return path


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> list[str]:
    """Returns the options of a run of some seconds."""
    options = {
        "dataset": corpus,
        "output": tmp_path / "run",
        "device": "cpu",
        "hidden-size": 16,
        "layers": 1,
        "heads": 2,
        "experts": 3,
        "top-k": 2,
        "expert-size": 8,
        "block-size": 16,
        "batch-size": 4,
        "steps": 6,
        "warmup-steps": 1,
        "eval-every": 3,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]
