"""Corrections on disk."""

from __future__ import annotations

import pytest

from specmoe.specialists.learning.log import KEPT, LOG_FILE, REVERTED, WAITING, CorrectionLog


def filled(folder):
    log = CorrectionLog(folder)
    for number, name in enumerate(("runic", "ascii", "runic"), 1):
        assert log.add(f"q{number} 🐃", 'a"\n', name).number == number
    log.decide(1, KEPT)
    log.decide(2, REVERTED, "why")
    return log


def test_what_was_stored_is_read_again(tmp_path):
    log, again = filled(tmp_path), CorrectionLog(tmp_path)
    assert again.corrections == log.corrections and again.states == {1: KEPT, 2: REVERTED, 3: WAITING}
    assert again.reasons[2] == "why"
    assert again.numbers(KEPT) == [1] and again.numbers(WAITING, "runic") == [3] and not again.numbers(KEPT, "ascii")


def test_every_line_is_on_the_disk_before_the_next(tmp_path, monkeypatch):
    import os

    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    filled(tmp_path)
    data = (tmp_path / LOG_FILE).read_bytes()
    assert synced == [place + 1 for place, byte in enumerate(data) if byte == 10]


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_line_that_was_cut(tmp_path, cut):
    filled(tmp_path)
    path = tmp_path / LOG_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    log = CorrectionLog(tmp_path)
    # Only the line's end is missing of one that is cut by one byte.
    assert len(log.corrections) == 3 and log.states[2] == (REVERTED if cut == 1 else WAITING)
    log.add("again", "b", "ascii")
    again = CorrectionLog(tmp_path)
    assert [each.query for each in again.corrections] == ["q1 🐃", "q2 🐃", "q3 🐃", "again"]
    assert again.states == log.states


def test_a_damaged_line(tmp_path):
    filled(tmp_path)
    path = tmp_path / LOG_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], "{", *lines[1:], ""]), encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: damaged"):
        CorrectionLog(tmp_path)
