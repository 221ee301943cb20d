"""A tiny corpus and a tiny run for the training tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specmoe.training import TrainSettings

TINY_RUN = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "expert_size": 12,
    "num_experts": 3,
    "top_k": 2,
    "block_size": 16,
    "batch_size": 4,
    "steps": 12,
    "warmup_steps": 3,
    "learning_rate": 1e-2,
    "dropout": 0.1,
    "eval_every": 4,
    "save_every": 3,
    "log_every": 2,
    "sample_tokens": 5,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="session")
def tiny_run() -> dict[str, Any]:
    """Returns the settings of a tiny run with dropout, all but its text and its directory."""
    return TINY_RUN


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a text file of 4000 characters in 7 kinds of words."""
    words = random.Random(0).choices(["the", "moon", "sees\n", "an", "old", "sea.", "and"], k=1200)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(" ".join(words)[:4000])
    return path


@pytest.fixture
def make_settings(corpus: Path, tmp_path: Path) -> Callable[..., TrainSettings]:
    """Returns a function that makes the settings of a tiny run with dropout."""

    def make(name: str = "run", **changes: Any) -> TrainSettings:
        return TrainSettings(**{**TINY_RUN, "dataset": str(corpus), "output_dir": tmp_path / name, **changes})

    return make
