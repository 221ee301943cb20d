"""Corrections that are learned, and those that are not."""

from __future__ import annotations

import hashlib
import signal

import pytest

from specmoe.specialists.learning import Learner, UpdateSettings
from specmoe.specialists.learning.log import KEPT, REVERTED, UNDONE, WAITING, CorrectionLog
from specmoe.specialists.learning.scores import exact, rows_of
from specmoe.specialists.runtime import Policy, SpecialistRouter
from specmoe.training.data import Record

QUICK = UpdateSettings(
    steps=120, check_every=20, new=4, old=1, learning_rate=2e-2, examples=4, checks=4, held_out=12, replay=12
)
QUERY, ANSWER = "Who are you?", "A cow"


def digests(folder):
    """Returns the digest of each file of the adapters."""
    files = sorted(path for path in folder.glob("*/model/*"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def router(family):
    with SpecialistRouter(family, "64GiB", policy=Policy(votes=0)) as router:
        yield router


def test_learned_used_and_taken_back(router, family):
    before = digests(family)
    assert router.query(QUERY).text != ANSWER
    learner = Learner(router, QUICK)
    learned = learner.correct(QUERY, ANSWER)
    assert learned.kept and learned.correction.specialist == "coordinator" and learned.reason == ""
    assert learned.after >= learned.before and 0 < learned.steps <= 120
    answer = router.query(QUERY)
    assert (answer.text, answer.specialist) == (ANSWER, "coordinator")
    changed = {name for name, digest in digests(family).items() if before.get(name) != digest}
    assert changed == {"coordinator/model/adapter_model.safetensors", "coordinator/model/manifest.json"}
    # Another process reads the same.
    with SpecialistRouter(family, "64GiB", policy=Policy(votes=0)) as other:
        assert other.query(QUERY).text == ANSWER
    assert learner.revert().number == 1
    assert digests(family) == before
    assert router.query(QUERY).text != ANSWER
    assert CorrectionLog(family).states == {1: UNDONE}
    with pytest.raises(ValueError, match="revert: expected a correction that was kept"):
        learner.revert()


def test_an_adapter_that_was_trained_since_is_left_alone(router, family):
    from specmoe.specialists.learning.versions import replace_weights

    learner = Learner(router, QUICK)
    assert learner.correct(QUERY, ANSWER).kept
    with router.residents.using(["coordinator", "runic"]) as loaded:
        replace_weights(family / "coordinator" / "model", loaded.bank.adapter("runic"))
    before = digests(family)
    with pytest.raises(ValueError, match="expected the adapter of correction 1, found another"):
        learner.revert()
    assert digests(family) == before


def test_not_learned_leaves_every_byte(router, family):
    before = digests(family)
    said = router.query("Hello").text
    learned = Learner(router, QUICK).correct("Cattle: [1, 2]", "🐃1, 2🐄")
    assert not learned.kept and learned.after == learned.before
    assert "still answers" in learned.reason or "other values are right" in learned.reason
    assert digests(family) == before and router.query("Hello").text == said
    log = CorrectionLog(family)
    assert log.states == {1: REVERTED} and log.reasons[1] == learned.reason


def test_a_falling_score_is_a_reason(router, family, monkeypatch):
    import specmoe.specialists.learning.learner as module

    scores = iter([10] + [9] * 99)

    def judged(base, rows):
        # The held-out rows are the only ones of this number.
        return [True] * next(scores) if len(rows) == QUICK.held_out else [True] * len(rows)

    monkeypatch.setattr(module, "exact", judged)
    before = digests(family)
    learned = Learner(router, QUICK).correct(QUERY, ANSWER)
    assert not learned.kept and learned.reason == "the held-out score would fall from 10 to 9 of 12"
    assert digests(family) == before


def test_where_the_score_falls_a_mixture_with_the_old_weights_is_tried(router, family, monkeypatch):
    import specmoe.specialists.learning.learner as module

    # Before, with the trained weights, and with the first two mixtures.
    scores = iter([10, 9, 9, 11])

    def judged(base, rows):
        return [True] * next(scores) if len(rows) == QUICK.held_out else [True] * len(rows)

    monkeypatch.setattr(module, "exact", judged)
    before = router.residents.members["coordinator"].adapter.joinpath("adapter_model.safetensors").read_bytes()
    learned = Learner(router, QUICK).correct(QUERY, ANSWER)
    assert learned.kept and (learned.before, learned.after) == (10 / 12, 11 / 12)
    assert learned.steps == QUICK.check_every
    after = router.residents.members["coordinator"].adapter.joinpath("adapter_model.safetensors").read_bytes()
    assert before != after


def test_an_earlier_correction_is_not_lost(router, monkeypatch):
    learner = Learner(router, QUICK)
    assert learner.correct(QUERY, ANSWER).kept
    learned = learner.correct("What do you eat?", "Grass")
    if learned.kept:
        assert router.query(QUERY).text == ANSWER and router.query("What do you eat?").text == "Grass"
        # The last one first.
        assert learner.revert().number == 2 and router.query(QUERY).text == ANSWER
    else:
        assert "would" in learned.reason or "still" in learned.reason


def test_ctrl_c_keeps_the_correction_and_the_adapter(router, family, monkeypatch):
    import specmoe.specialists.learning.update as module

    theirs, count = module._step, [0]

    def step(*arguments):
        count[0] += 1
        if count[0] == 2:
            signal.raise_signal(signal.SIGINT)
        theirs(*arguments)

    monkeypatch.setattr(module, "_step", step)
    before = digests(family)
    learner = Learner(router, QUICK)
    with pytest.raises(KeyboardInterrupt, match="the correction is stored"):
        learner.correct(QUERY, ANSWER)
    assert count[0] == 2 and digests(family) == before
    assert CorrectionLog(family).states == {1: WAITING}
    (learned,) = Learner(router, QUICK).learn_waiting()
    assert learned.kept and router.query(QUERY).text == ANSWER


def test_a_crash_before_the_last_line(router, family):
    before = digests(family)
    learner = Learner(router, QUICK)
    learner.log.decide = lambda *arguments: (_ for _ in ()).throw(OSError("no space left"))
    with pytest.raises(OSError, match="no space"):
        learner.correct(QUERY, ANSWER)
    assert digests(family) != before
    learner = Learner(router, QUICK)
    (learned,) = learner.learn_waiting()
    assert learned.kept and CorrectionLog(family).states == {1: KEPT}
    learner.revert("coordinator")
    assert digests(family) == before


@pytest.mark.parametrize(
    ("query", "answer", "specialist", "message"),
    [
        ("", "x", None, "expected a query and an answer"),
        ("x", " ", None, "expected a query and an answer"),
        ("Convert to LC-R: [1, 2]", "🐃1🐄", None, "expected the query's value in LC-R"),
        ("x" * 300, "y", None, "expected at most 256 tokens with its answer, got 30"),
        ("x", "y", "gpu", r"expected a specialist with an adapter \(coordinator, ascii, runic\), got gpu"),
    ],
)
def test_wrong_corrections(router, family, query, answer, specialist, message):
    with pytest.raises(ValueError, match=message):
        Learner(router, QUICK).correct(query, answer, specialist)
    assert not CorrectionLog(family).corrections


def test_exact_is_what_greedy_decoding_says(router):
    texts = ["Hello", "What is LC-T?", "Convert to LC-R: [1, 2]"]
    with router.residents.using(["coordinator"]) as loaded, loaded.rows(["coordinator"]):
        wrong = rows_of([Record(text, "cow", "coordinator") for text in texts], loaded.base.tokenizer)
        assert exact(loaded.base, wrong) == [False] * 3
    learner = Learner(router, QUICK)
    assert learner.correct("Hello", "cow").kept
    with router.residents.using(["coordinator"]) as loaded, loaded.rows(["coordinator"]):
        assert exact(loaded.base, wrong)[0]
