"""Stores of models in memory: none outlives its process, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specmoe.offload import ExpertStore, offload
from specmoe.offload.engine import stores

from .test_engine import budget, make_model

ROOT = Path(__file__).parents[3]
KILLED = """
import os, signal, sys
from specmoe.offload.engine import stores
from tests.specmoe.offload.test_engine import budget, make_model
from specmoe.offload import offload
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "written":
    stores._open = kill
else:
    import specmoe.offload.store.builder as builder
    builder.write_frame = kill
offload(make_model(), memory=budget(6))
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
@pytest.mark.parametrize("when", ["half-written", "written"])
def test_what_a_killed_process_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path))
    command = [sys.executable, "-c", KILLED, when]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == -9, done.stderr
    assert len(list(tmp_path.iterdir())) == 1
    with offload(make_model(), memory=budget(6)):
        assert not list(tmp_path.iterdir())


def test_an_interrupt_while_opening_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path))

    def interrupted(*_: Any) -> ExpertStore:
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        offload(make_model(), memory=budget(6))
    assert not list(tmp_path.iterdir())


def test_stores_of_living_processes_and_other_files_stay(
    tmp_path: Path, make_layers: Callable[..., dict[int, dict[str, torch.Tensor]]]
) -> None:
    own = f"offload-{os.getpid()}-1a.store"
    kept = [own, f".{own}.{os.getpid()}-2b.tmp", "offload-x-1a.store"]
    for name in kept:
        ExpertStore.build(make_layers(), tmp_path / name).close()
    assert stores.remove_dead_stores(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
