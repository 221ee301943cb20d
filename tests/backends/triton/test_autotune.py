"""What autotune keeps and where, with invented times: no GPU is needed."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("MOE_TEST_DEVICE", "cpu") == "cpu":
    # Read when triton is imported, whose own functions are kernels too.
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed")

from moe_kernels.backends.triton import autotune  # noqa: E402
from moe_kernels.backends.triton.tiles import Tile  # noqa: E402

SLOW, FAST, REFUSED = Tile(16, 32, 64, 4, 2), Tile(64, 128, 64, 4, 3, 2), Tile(128, 256, 64, 8, 9)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Return the list of the tiles that are measured."""
    times = {SLOW: 2.0, FAST: 1.0, REFUSED: float("inf")}
    seen: list[Tile] = []

    def milliseconds(launch, tile):
        seen.append(tile)
        return times[tile]

    monkeypatch.setattr(autotune, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotune._file.cache_clear()
    autotune._found.clear()
    yield seen
    autotune._file.cache_clear()
    autotune._found.clear()


def _choose() -> Tile:
    return autotune.fastest("grouped_mm", (torch.bfloat16, 64), 0, SLOW, [REFUSED, FAST], lambda tile: None)


def test_measured_once_and_kept_in_a_file(measured, tmp_path):
    assert _choose() == FAST
    assert _choose() == FAST
    assert measured == [SLOW, REFUSED, FAST]
    # Another process.
    autotune._file.cache_clear()
    autotune._found.clear()
    assert _choose() == FAST
    assert len(measured) == 3
    assert len(list(tmp_path.glob("moe-kernels/tiles-A-GPU-*.json"))) == 1


def test_nothing_is_measured_during_a_capture(measured, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert _choose() == SLOW
    assert not measured


def test_a_broken_file_is_measured_again(measured, tmp_path):
    path = autotune._file(0)
    path.parent.mkdir()
    path.write_text("{")
    autotune._file.cache_clear()
    assert _choose() == FAST


def test_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv("MOE_KERNELS_AUTOTUNE", raising=False)
    assert not autotune.asked_for()
