"""Crashes, full disks and other processes: no correction and no adapter is lost."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import threading

import pytest
import torch

from specmoe.specialists.learning import Learned, Learner, UpdateSettings
from specmoe.specialists.learning.alone import alone
from specmoe.specialists.learning.log import KEPT, LOG_FILE, UNDONE, WAITING, CorrectionLog
from specmoe.specialists.learning.update import update
from specmoe.specialists.runtime import Policy, SpecialistRouter


def digests(folder):
    """Returns the digest of the coordinator's weights."""
    path = folder / "coordinator" / "model" / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def router(family):
    with SpecialistRouter(family, "64GiB", policy=Policy(votes=0)) as router:
        yield router


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Learning without steps: the adapter moves a little, and that is kept."""

    def tried(self, loaded, correction, rule):
        with torch.no_grad():
            for factor in loaded.bank.trainable():
                factor += 0.01 * correction.number
        return Learned(correction, True, "", 1, 0.5, 0.5)

    monkeypatch.setattr(Learner, "_tried", tried)


class Crash(BaseException):
    """Nothing handles it, as nothing handles a crash."""


def crash(*arguments, **named):
    raise Crash


def test_what_was_learned_last_is_taken_back_first(router, family):
    learner, before = Learner(router), digests(family)
    learner.log.add("Hello", "cow", "coordinator")
    assert learner.correct("Who are you?", "A cow").correction.number == 2
    (learned,) = learner.learn_waiting()
    assert learned.correction.number == 1 and CorrectionLog(family).numbers(KEPT) == [2, 1]
    assert [learner.revert().number for _ in range(2)] == [1, 2]
    assert digests(family) == before


def test_a_crash_before_the_line_is_undone_by_the_next_correction(router, family, monkeypatch):
    before = digests(family)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(CorrectionLog, "decide", crash)
        Learner(router).correct("Hello", "cow")
    assert digests(family) != before
    learner = Learner(router)
    second = learner.correct("Who are you?", "A cow")
    with_second = digests(family)
    assert second.kept and CorrectionLog(family).states == {1: WAITING, 2: KEPT}
    # What came after stays when the first is learned at last.
    assert [learned.correction.number for learned in learner.learn_waiting()] == [1]
    assert learner.revert().number == 1 and digests(family) == with_second
    assert learner.revert().number == 2 and digests(family) == before


def test_a_revert_that_a_crash_has_ended_is_done_again(router, family, monkeypatch):
    learner, before = Learner(router), digests(family)
    learner.correct("Hello", "cow")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(CorrectionLog, "decide", crash)
        learner.revert()
    assert digests(family) == before and CorrectionLog(family).states == {1: KEPT}
    assert learner.revert().number == 1
    assert digests(family) == before and CorrectionLog(family).states == {1: UNDONE}


def test_what_another_process_has_learned_is_not_overwritten(router, family):
    mine = Learner(router)
    mine.correct("Hello", "cow")
    with SpecialistRouter(family, "64GiB", policy=Policy(votes=0)) as other:
        assert Learner(other).correct("Who are you?", "A cow").correction.number == 2
        theirs = digests(family)
        assert mine.correct("What do you eat?", "Grass").correction.number == 3
    assert mine.revert().number == 3 and digests(family) == theirs


def test_one_at_a_time(tmp_path):
    entered, left = threading.Event(), []

    def second():
        with alone(tmp_path):
            left.append(entered.is_set())

    with alone(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        entered.set()
    thread.join(10)
    assert left == [True]


def test_a_full_disk_leaves_no_piece_of_a_line(tmp_path, monkeypatch):
    log = CorrectionLog(tmp_path)
    log.add("q", "a", "ascii")
    whole = (tmp_path / LOG_FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(OSError, match="No space"):
            log.add("lost", "b", "ascii")
    assert (tmp_path / LOG_FILE).read_bytes() == whole
    log.add("again", "b", "ascii")
    assert [each.query for each in CorrectionLog(tmp_path).corrections] == ["q", "again"]


def test_ctrl_c_while_it_looks_whether_it_has_learned(monkeypatch):
    import specmoe.specialists.learning.update as module

    monkeypatch.setattr(module, "_step", lambda *arguments: None)
    monkeypatch.setattr(module, "collate", lambda rows, pad: {})

    class Nothing:
        parameters = [torch.nn.Parameter(torch.zeros(1))]  # noqa: RUF012
        base = type("Base", (), {"tokenizer": type("Tokenizer", (), {"pad_token_id": 0})})

    def learned():
        signal.raise_signal(signal.SIGINT)
        return True

    with pytest.raises(KeyboardInterrupt, match="the adapter stays as it was"):
        update(Nothing, "a", [{}], [], Nothing, UpdateSettings(), learned, lambda step: None)


def test_adapters_stay_where_another_does_not_fit(router):
    with router.residents.using(["coordinator"]) as loaded:
        names = loaded.names
        alien = loaded.bank.adapter("coordinator")
        alien = type(alien)("alien", {"model.nowhere": next(iter(alien.factors.values()))}, {"model.nowhere": 1.0})
        with pytest.raises(ValueError, match="expected layers of the base"):
            loaded.change(add=[alien])
        assert loaded.names == names
