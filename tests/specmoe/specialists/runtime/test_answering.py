"""How a query is answered, with models that say what a test wants."""

from __future__ import annotations

import pytest

from specmoe.notation import find_value
from specmoe.routing import Route
from specmoe.specialists.requests import Request
from specmoe.specialists.routing import RuleRouter
from specmoe.specialists.runtime import Policy, Reply, answer_all

MEMBERS = ("coordinator", "ascii", "runic")
QUERY, RIGHT = "Convert to LC-R: [1, 2]", "🐃1, 2🐄"


class Models:
    """Replies by specialist and draw; keeps what was asked, a list for each call."""

    def __init__(self, **says):
        self.says, self.calls = says, []

    def __call__(self, asks):
        self.calls.append([(ask.specialist, ask.draw) for ask in asks])
        replies = []
        for ask in asks:
            said = self.says[ask.specialist]
            said = said(ask.draw) if callable(said) else said
            replies.append(said if isinstance(said, Reply) else Reply(said))
        return replies


def asked(models, *texts, route=None, policy=None, members=MEMBERS):
    routes = [route or RuleRouter().route(text) for text in texts]
    return answer_all(texts, routes, members, models, policy or Policy(samples=2))


def test_a_verified_answer_takes_one_call():
    models = Models(runic=" 🐃1,2🐄")
    (answer,) = asked(models, QUERY)
    # As the codec spells it.
    assert (answer.text, answer.specialist, answer.confidence, answer.verified) == (RIGHT, "runic", 1.0, True)
    assert not answer.abstained and answer.reason == "" and models.calls == [[("runic", 0)]]


def test_a_wrong_answer_is_drawn_again():
    models = Models(runic=lambda draw: RIGHT if draw == 2 else "🐃1🐄")
    (answer,) = asked(models, QUERY)
    assert models.calls == [[("runic", 0)], [("runic", 1), ("runic", 2)]]
    assert answer.verified and answer.text == RIGHT and answer.confidence == pytest.approx(1 / 3)
    assert [attempt.verified for attempt in answer.attempts] == [False, False, True]
    assert "the answer means [1], the query's value [1, 2]" in answer.attempts[0].reason


def test_then_another_model_is_asked():
    models = Models(runic="no", coordinator=RIGHT)
    (answer,) = asked(models, QUERY)
    assert (answer.specialist, answer.text, answer.verified) == ("coordinator", RIGHT, True)
    assert models.calls[-1] == [("coordinator", 0)]


def test_then_it_abstains_with_the_reason():
    models = Models(runic="🐃1🐄", coordinator="no")
    (answer,) = asked(models, QUERY)
    assert answer.abstained and answer.text == "" and answer.confidence == 0
    assert answer.reason == "no answer of 6 was right: the answer means [1], the query's value [1, 2]"


def test_the_coordinators_other_is_whose_notation_it_is():
    route = Route("coordinator", 1.0, {"coordinator": 1.0, "ascii": 0.0, "runic": 0.0})
    models = Models(coordinator="no", runic=RIGHT)
    (answer,) = asked(models, QUERY, route=route)
    assert answer.specialist == "runic"


def test_without_a_specialist_the_coordinator_answers():
    (answer,) = asked(Models(coordinator=RIGHT), QUERY, members=("coordinator",))
    assert answer.specialist == "coordinator"


def test_an_unsure_route_asks_the_two_likeliest_at_once():
    route = Route("ascii", 0.5, {"ascii": 0.5, "runic": 0.4, "coordinator": 0.1})
    models = Models(ascii="no", runic=RIGHT)
    (answer,) = asked(models, QUERY, route=route)
    assert models.calls == [[("ascii", 0), ("runic", 0)]]
    assert answer.specialist == "runic" and answer.confidence == 0.5


@pytest.mark.parametrize(("same", "given"), [(4, True), (3, True), (2, True), (1, False)])
def test_what_cannot_be_checked_needs_agreement(same, given):
    models = Models(coordinator=lambda draw: "It is compact." if draw < same else f"It is {draw}.")
    (answer,) = asked(models, "What is LC-T?")
    assert models.calls == [[("coordinator", draw) for draw in range(4)]]
    assert answer.abstained is not given and not answer.verified
    if given:
        assert answer.confidence == same / 4 and answer.reason == "the codec cannot check it"
    else:
        assert answer.reason == "25% of 4 attempts agree"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the query is empty"),
        (" \n", "the query is empty"),
        ("x" * 5000, "expected a query of at most 4096 characters, got 5,000"),
    ],
    ids=["empty", "blank", "enormous"],
)
def test_nobody_is_asked(text, reason):
    models = Models()
    (answer,) = asked(models, text)
    assert answer.abstained and answer.reason == reason and models.calls == []


def test_a_problem_is_the_reason():
    long = Reply("", "the query has 900 tokens, the model takes less than 512")
    (answer,) = asked(Models(runic=long, coordinator=long), QUERY)
    assert answer.abstained and "900 tokens" in answer.reason
    (answer,) = asked(Models(coordinator=long), "Hello")
    assert answer.abstained and "900 tokens" in answer.reason


def test_queries_of_a_batch_are_asked_together():
    def runic(draw):
        return RIGHT if draw else "no"

    models = Models(runic=runic, ascii="[1,2]", coordinator="It is compact.")
    answers = asked(models, QUERY, "Convert to LC-T: [1, 2]", "", "What is LC-T?", QUERY)
    assert [answer.specialist for answer in answers] == ["runic", "ascii", "", "coordinator", "runic"]
    assert len(models.calls) == 2 and len(models.calls[0]) == 7
    assert models.calls[1] == [("runic", 1), ("runic", 2)] * 2


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"temperature": 0.0}, {"agreement": 1.5}, {"sure": -0.1}])
def test_policies_are_checked(wrong):
    with pytest.raises(ValueError, match=f"policy: {next(iter(wrong))}: expected"):
        Policy(**wrong)


def test_a_learned_name_is_also_asked_for_in_plain_words():
    asked = []

    def ask(asks):
        asked.extend(asks)
        return [Reply("🐃1, 2🐄" if each.text == "Convert from HLXL to LC-R: [1, 2]" else "cow") for each in asks]

    def understood(text):
        return Request(find_value(text), "hlxl", "lc-r", learned=text != "LC-R: [1, 2]")

    route = Route("runic", 1.0, {"runic": 1.0}, ())
    text = "herd signs: [1, 2]"
    (answer,) = answer_all([text], [route], ("coordinator", "runic"), ask, Policy(), understood)
    assert (answer.text, answer.verified, len(answer.attempts)) == ("🐃1, 2🐄", True, 2)
    assert [each.text for each in asked] == [text, "Convert from HLXL to LC-R: [1, 2]"]
    # Where the query says it, it is asked as it stands.
    asked.clear()
    (answer,) = answer_all(["LC-R: [1, 2]"], [route], ("coordinator", "runic"), ask, Policy(samples=0), understood)
    assert answer.abstained and {each.text for each in asked} == {"LC-R: [1, 2]"}
