"""A family is asked, judged and reported on."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_base import save_tiny

from specmoe.specialists.corpora import Example
from specmoe.specialists.evaluation import evaluate as evaluate_module
from specmoe.specialists.evaluation import evaluate_family
from specmoe.specialists.evaluation.scores import ALONE, CODEC, VERIFIED
from specmoe.specialists.evaluation.speaking import Speakers
from specmoe.specialists.runtime import router as router_module
from specmoe.specialists.runtime.answering import Ask, Policy, Reply
from specmoe.specialists.training import OFFLINE, prepare_family, train_specialist

pytest.importorskip("bitsandbytes")

TINY = dataclasses.replace(OFFLINE, examples=32, steps=2, validation=8, evaluations=1, batch_size=8)
POLICY = Policy(samples=1, others=1)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    place = tmp_path_factory.mktemp("tested")
    found = prepare_family(place / "family", str(save_tiny(place / "base")))
    for name in ("coordinator", "runic"):
        train_specialist(name, found, TINY, progress=False)
    return found


@pytest.fixture
def few_router_prompts(monkeypatch):
    monkeypatch.setattr(router_module, "_ROUTER_PROMPTS", 40)


def test_an_untrained_family_answers_nothing_and_the_codec_everything(family, few_router_prompts):
    found = evaluate_family(family.folder, 12, policy=POLICY, batch=6, progress=False)
    assert found.total(ALONE).exact == 0.0
    assert found.total(VERIFIED).coverage == 0.0
    assert found.total(CODEC).exact == 1.0
    assert [found.total(way).cases for way in (ALONE, VERIFIED, CODEC)] == [12, 12, 12]
    assert found.routing["rules"] == 1.0
    assert set(found.loss) == {"coordinator", "runic"}
    assert len(found.wrong) == 12
    assert found.figures["peak memory bytes"] > 0


def test_one_that_is_right_where_it_is_asked_again_is_covered_but_not_exact(family, few_router_prompts, monkeypatch):
    """The models are played: the likeliest answer is always wrong, a drawn one always right."""
    solutions: dict[str, str] = {}
    real = evaluate_module.test_cases

    def remembered(*args):
        cases = real(*args)
        solutions.update({e.prompt: e.completion for each in cases.values() for e in each})
        return cases

    def answer(self, asks, told=None):
        return [Reply(solutions[ask.text] if ask.draw else "[]x") for ask in asks]

    monkeypatch.setattr(evaluate_module, "test_cases", remembered)
    monkeypatch.setattr(Speakers, "answer", answer)
    found = evaluate_family(family.folder, 20, policy=POLICY, progress=False)
    assert found.total(ALONE).exact == 0.0
    verified = found.total(VERIFIED)
    assert (verified.coverage, verified.precision) == (1.0, 1.0)


def test_a_right_answer_to_another_question_counts_as_wrong():
    """What the case wants decides: an answer that verification took for right can still be wrong."""
    found = evaluate_module.Evaluation()
    example = Example("In LC-T: [1]", "[1]", "ascii", "[1]", kind="arrays", source="hlxl", target="lc-t")
    found.count(VERIFIED, "ascii", example, True, "[2]" == example.completion)
    assert found.total(VERIFIED).precision == 0.0


def test_likeliest_answers_are_computed_once_and_keep_their_places(family, monkeypatch):
    speakers = Speakers(family, POLICY, batch=2)
    asked: list[Ask] = []

    def said(asks):
        asked.extend(asks)
        return [Reply(f"{ask.specialist}:{ask.text}:{ask.draw}") for ask in asks]

    monkeypatch.setattr(speakers, "_asking", said)
    asks = [Ask("runic", text, draw) for text in ("long " * 3, "a", "bb") for draw in (0, 1)]
    wanted = [f"{ask.specialist}:{ask.text}:{ask.draw}" for ask in asks]
    assert [reply.text for reply in speakers.answer(asks)] == wanted
    assert [reply.text for reply in speakers.answer(asks)] == wanted
    assert len(asked) == 6 + 3
    assert speakers.tokens > 0


def test_a_family_without_specialists_is_refused(tmp_path):
    empty = prepare_family(tmp_path / "family", str(save_tiny(tmp_path / "base")))
    with pytest.raises(ValueError, match="expected a trained specialist, found none"):
        evaluate_family(empty.folder, 12)
