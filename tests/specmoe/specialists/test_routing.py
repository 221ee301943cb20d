"""Which specialist a query belongs to, on the test side's phrasings and structures."""

from __future__ import annotations

import pytest

from specmoe.routing import RouterSettings
from specmoe.specialists.corpora import SPECIALISTS, CorpusSettings, generate
from specmoe.specialists.routing import RuleRouter, marked, train_specialist_router

SETTINGS = CorpusSettings(size=1000, test_size=750)


@pytest.fixture(scope="module")
def asked():
    return [example for name in SPECIALISTS for example in generate(name, "test", SETTINGS)]


def share_right(router, asked):
    right = 0
    for example in asked:
        probabilities = router.route(example.prompt).probabilities
        assert sum(probabilities.values()) == pytest.approx(1)
        right += max(probabilities, key=probabilities.get) == example.route
    return right / len(asked)


def test_rules(asked):
    assert len(asked) == 3000
    assert share_right(RuleRouter(), asked) >= 0.99


def test_trained(asked):
    trained = [example for name in SPECIALISTS for example in generate(name, "train", SETTINGS)]
    router = train_specialist_router(trained, RouterSettings(buckets=1 << 14, epochs=4))
    assert router.domains == tuple(SPECIALISTS)
    assert share_right(router, asked) >= 0.99
    assert router.route(" ").domain is None


@pytest.mark.parametrize(
    ("query", "specialist"),
    [
        ("Convert to LC-R: [1, 2, 3]", "runic"),
        ("Convert to LC-T: [1, 2, 3]", "ascii"),
        ("Convert {C:14,0=42} to LC-R", "coordinator"),
        ("Convert to LC-B: 42", "coordinator"),
        ("Convert {C:901,0=42} to LC-R", "gpu"),
        ("Parse [901|0:0x2a]", "gpu"),
        ("Explain 🐃🐊902🐂🐄", "gpu"),
        ("Which specialist answers: Convert to LC-R: [1]", "coordinator"),
        ("What is LC-T?", "coordinator"),
        ("[" * 9999, "coordinator"),
    ],
)
def test_rules_on_plain_queries(query, specialist):
    assert RuleRouter().route(query).domain == specialist


def test_an_empty_query_is_abstained_from():
    assert RuleRouter().route("").domain is None


def test_marks():
    assert marked("Convert to LC-R: [901]") == f"Convert to LC-R: [901]{' hlxltolcr' * 3}"
    assert marked("Parse {C:901,0=1}").endswith(" gpucontract")
    assert marked("Which specialist answers: [1]").endswith(" asksroute")
    assert marked("Hello").endswith(" novalue")
    assert marked("[" * 9999) == "[" * 9999
