"""Corrections that are learned, and those that are not."""

from __future__ import annotations

import hashlib
import signal

import pytest
import torch

from specmoe.specialists.learning import Learner, UpdateSettings
from specmoe.specialists.learning.log import KEPT, REVERTED, UNDONE, WAITING, Correction, CorrectionLog
from specmoe.specialists.learning.original import original_folder, original_name
from specmoe.specialists.learning.scores import exact, rows_of
from specmoe.specialists.learning.versions import replace_weights, weights_digest
from specmoe.specialists.runtime import Policy, SpecialistRouter
from specmoe.specialists.runtime.loaded import Loaded
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


@pytest.fixture
def scored(monkeypatch):
    """Everything that is asked is right, and the held-out score, 10 before, is what the list says, look by look."""
    import specmoe.specialists.learning.learner as module

    scores = []

    class HeldOut:
        before = 10

        def right(self):
            count = scores.pop(0) if len(scores) > 1 else scores[0]
            return count, count >= self.before

    monkeypatch.setattr(Learner, "_held_out", lambda *arguments: (HeldOut(), 0))
    monkeypatch.setattr(module, "exact", lambda base, rows: [True] * len(rows))
    return scores


def test_a_falling_score_is_a_reason(router, family, scored):
    scored.append(9)
    before = digests(family)
    learned = Learner(router, QUICK).correct(QUERY, ANSWER)
    assert not learned.kept and learned.reason == "the held-out score would fall from 10 to 9 or fewer of 12"
    assert digests(family) == before


def test_where_the_score_falls_a_mixture_with_the_old_weights_is_tried(router, family, scored):
    # With the trained weights, and with the first two mixtures.
    scored += [9, 9, 11]
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


def said_by(loaded, name, text):
    """Returns the logits of one adapter for a text."""
    ids = torch.tensor([loaded.base.tokenizer(text).input_ids])
    with loaded.rows([name]), torch.no_grad():
        return loaded.base.model(ids).logits


def test_what_no_correction_is_about_is_answered_as_before(router, family, monkeypatch):
    """The corrected adapter answers the corrected query alone; the one before it answers the rest, to the bit."""
    with router.residents.using(["coordinator"]) as loaded:
        before = said_by(loaded, "coordinator", "Hello")
    learner = Learner(router, QUICK)
    assert learner.correct(QUERY, ANSWER).kept
    asked = []
    rows = Loaded.rows
    monkeypatch.setattr(Loaded, "rows", lambda self, names: asked.append(list(names)) or rows(self, names))
    original = original_name("coordinator")
    for opened in (router, SpecialistRouter(family, "64GiB", policy=Policy(votes=0))):
        asked.clear()
        assert opened.query_batch([QUERY, " who  are YOU?", "Hello"])[0].text == ANSWER
        # Rows are sorted by their length.
        assert sorted(asked[0]) == ["coordinator", "coordinator", original]
        with opened.residents.using(["coordinator"]) as loaded:
            assert torch.equal(said_by(loaded, original, "Hello"), before)
            assert not torch.equal(said_by(loaded, "coordinator", "Hello"), before)
    # A second one changes the corrected adapter alone.
    if learner.correct("What do you eat?", "Grass").kept:
        with router.residents.using(["coordinator"]) as loaded:
            assert torch.equal(said_by(loaded, original, "Hello"), before)
        learner.revert()
    learner.revert()
    with router.residents.using(["coordinator"]) as loaded:
        assert original not in loaded.names and torch.equal(said_by(loaded, "coordinator", "Hello"), before)


def test_bytes_of_both_adapters_are_counted(router):
    residents = router.residents
    before = residents.bytes_of(["coordinator"])
    adapter = residents.members["coordinator"].adapter_bytes
    learner = Learner(router, QUICK)
    assert learner.correct(QUERY, ANSWER).kept
    assert residents.bytes_of(["coordinator"]) == before + adapter
    learner.revert()
    assert residents.bytes_of(["coordinator"]) == before


def test_held_out_examples_that_a_correction_is_about_are_looked_at(router, monkeypatch):
    learner = Learner(router, QUICK)
    examples = learner._corpus("coordinator", "test")
    place = next(n for n, each in enumerate(examples) if each.is_conversion)
    correction = Correction(1, examples[place].prompt, examples[place].completion, "coordinator")
    monkeypatch.setattr(learner, "_originally", lambda *arguments: [True] * len(examples))
    with router.residents.using(["coordinator"]) as loaded:
        held_out, others = learner._held_out(loaded, correction, lambda rows: [False] * len(rows))
    assert held_out.before >= 1 and held_out.before + others == len(examples)
    count, held = held_out.right()
    assert (count, held) == (0, False)


def test_an_adapter_trained_again_since_has_no_original(router, family):
    learner = Learner(router, QUICK)
    place = family / "coordinator" / "model"
    assert original_folder(place) is None
    assert learner.correct(QUERY, ANSWER).kept
    first = original_folder(place)
    assert first is not None and weights_digest(first) != weights_digest(place)
    with router.residents.using(["coordinator", "runic"]) as loaded:
        replace_weights(place, loaded.bank.adapter("runic"))
    assert original_folder(place) is None
    router.residents.forget("coordinator")
    # What is learned on it counts from there.
    if learner.correct("What do you eat?", "Grass").kept:
        again = original_folder(place)
        assert again is not None and again != first
