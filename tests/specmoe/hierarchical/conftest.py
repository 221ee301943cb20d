"""A folder of tiny experts, trained for a few steps on short records."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from specmoe.hierarchical import Workspace, claim_plan, presets, train_experts, train_two_level, workspace
from specmoe.routing import RouterSettings
from specmoe.training.data import DOMAINS
from specmoe.training.data.math_problems import generate_math
from specmoe.training.data.reasoning_problems import generate_reasoning

TINY = presets.ExpertPreset(
    layers=1,
    width=16,
    heads=2,
    context=128,
    vocab_size=300,
    batch_size=8,
    learning_rate=1e-2,
    evaluations=3,
    patience=0,
)
SAID = {
    "code": ("Write a function that adds {}.", "def add(x):\n    return x + {}"),
    "conversation": ("Hello, I am number {}.", "Nice to meet you, number {}!"),
    "knowledge": ("Tell me about thing {}.", "Thing {} is a thing that is known."),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns a file of short records for each domain."""
    folder = tmp_path_factory.mktemp("records")
    rows: dict[str, list[dict[str, str]]] = {
        domain: [{"prompt": prompt.format(i), "completion": said.format(i)} for i in range(150)]
        for domain, (prompt, said) in SAID.items()
    }
    for domain, generated in (("math", generate_math), ("reasoning", generate_reasoning)):
        records = [record for record in generated(400, 0) if len(record.prompt) < 70]
        rows[domain] = [{"prompt": record.prompt, "completion": record.completion} for record in records]
    for domain, lines in rows.items():
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {domain: str(folder / f"{domain}.jsonl") for domain in DOMAINS}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the small preset tiny, and the router's training short."""
    shorten(monkeypatch)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Replaces the small preset, and the settings that the router is trained with."""
    patch.setitem(presets.PRESETS, "small", TINY)
    settings = RouterSettings(buckets=1 << 12, each=1, epochs=2)
    patch.setattr(workspace, "train_two_level", partial(train_two_level, settings=settings))


@pytest.fixture
def new_workspace(tiny: None, sources: dict[str, str], tmp_path: Path) -> Callable[..., Workspace]:
    """Returns a function that opens a folder of tiny experts, none of them trained yet."""

    def make(name: str = "experts", **given: Any) -> Workspace:
        root = tmp_path / name
        return Workspace(root, claim_plan(root, **{"sources": sources, "steps": 6, **given}))

    return make


@pytest.fixture(scope="session")
def trained_root(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, str]) -> Path:
    """Returns a folder of trained tiny experts; tests must not change it."""
    root = tmp_path_factory.mktemp("trained") / "experts"
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        made = Workspace(root, claim_plan(root, sources=sources, steps=60))
        train_experts(made, DOMAINS, lambda line: None, progress=False)
        assert made.router.domains
    return root


@pytest.fixture
def trained(tiny: None, trained_root: Path) -> Workspace:
    """Returns the folder of trained tiny experts."""
    return Workspace(trained_root)
