"""The record of a run."""

from __future__ import annotations

import json

from specmoe.training.history import HISTORY_FILE, History, plot_losses


def test_a_line_is_on_disk_as_soon_as_it_is_added(tmp_path):
    history = History(tmp_path, 0)
    history.add(step=1, cross_entropy=0.1 + 0.2)
    lines = [json.loads(line) for line in (tmp_path / HISTORY_FILE).read_text().splitlines()]
    assert lines == [{"step": 1, "cross_entropy": 0.30000000000000004}]


def test_resuming_drops_later_lines_and_half_a_line(tmp_path):
    first = History(tmp_path, 0)
    for step in range(1, 6):
        first.add(step=step, cross_entropy=float(step))
    with first.path.open("a") as file:
        file.write('{"step": 6, "cross_')
    again = History(tmp_path, 3)
    again.add(step=4, validation_loss=9.0)
    assert again.series("cross_entropy") == ([1, 2, 3], [1.0, 2.0, 3.0])
    assert [json.loads(line)["step"] for line in again.path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_fresh_run_starts_an_empty_record(tmp_path):
    History(tmp_path, 0).add(step=1, cross_entropy=1.0)
    assert History(tmp_path, 0).lines == []


def test_the_plot_is_a_png(tmp_path):
    history = History(tmp_path, 0)
    history.add(step=1, cross_entropy=2.0)
    history.add(step=1, validation_loss=2.1)
    plot_losses(history, tmp_path / "loss.png", "a title")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [HISTORY_FILE, "loss.png"]
