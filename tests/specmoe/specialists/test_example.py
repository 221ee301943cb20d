"""`examples/specialists.py` on a tiny untrained family."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "specialists.py"


def test_it_runs(tmp_path, monkeypatch, capsys):
    from tiny_family import save_family

    import specmoe.specialists.learning.learner as learner
    import specmoe.specialists.runtime.generation as generation

    monkeypatch.setattr(generation, "_GROWTH", 0)
    monkeypatch.setattr(generation, "_MORE", 6)
    quick = partial(learner.UpdateSettings, steps=1, examples=4, held_out=4, replay=4)
    monkeypatch.setattr(learner, "UpdateSettings", quick)
    runpy.run_path(str(EXAMPLE))["main"](save_family(tmp_path), "64GiB")
    told = capsys.readouterr().out
    assert "by nobody, 0% sure, verified: False" in told
    assert told.count(" -> ") == 4
    assert "correction 1: it still answers something else" in told


def test_a_missing_family(tmp_path):
    from specmoe.specialists.runtime import FamilyError

    with pytest.raises(FamilyError, match="found no such folder"):
        runpy.run_path(str(EXAMPLE))["main"](tmp_path / "none", "3GiB")
