"""What corrections say in general."""

from __future__ import annotations

import pytest

from specmoe.notation import find_value, parse, same
from specmoe.specialists.corpora.shapes import shape_of
from specmoe.specialists.learning.log import KEPT, UNDONE, Correction, CorrectionLog
from specmoe.specialists.learning.rules import LearnedRules, Phrasings, Rule, rule_of
from specmoe.specialists.learning.variations import variations
from specmoe.specialists.requests import understand
from specmoe.specialists.verification import verify


@pytest.mark.parametrize(
    ("query", "answer", "rule"),
    [
        ("Cattle: [1, 2]", "🐃1, 2🐄", Rule("Cattle: ", "", "hlxl", "lc-r")),
        ("Squeeze {x: 10} now", "{x:10}", Rule("Squeeze ", " now", "hlxl", "lc-t")),
        ("Longhand: 🐃1, 2🐄", "[1, 2]", Rule("Longhand: ", "", "lc-r", "hlxl")),
        ("Convert to LC-R: [1, 2]", "🐃1, 2🐄", Rule("Convert to LC-R: ", "", "hlxl", "lc-r")),
        # In three notations it looks like this.
        ("Cattle: 42", "42", None),
        ("Cattle: [1, 2]", "two numbers", None),
        ("Who are you?", "A coordinator.", None),
    ],
)
def test_rules(query, answer, rule):
    assert rule_of(query, answer) == rule


def test_what_the_codec_contradicts():
    with pytest.raises(ValueError, match="expected the query's value in LC-R: the answer means"):
        rule_of("Convert to LC-R: [1, 2]", "🐃1🐄")


def test_learned_rules_tell_what_is_asked_for(tmp_path):
    log = CorrectionLog(tmp_path)
    log.add("Cattle: [1, 2]", "🐃1, 2🐄", "coordinator")
    rules = LearnedRules(tmp_path)
    assert rules.understand('cattle:  ["hi"]').target == "" and rules.specialist("Cattle: [3]") is None
    log.decide(1, KEPT)
    rules.read()
    request = rules.understand('cattle:  ["hi"]')
    assert (request.source, request.target, request.value) == ("hlxl", "lc-r", ["hi"])
    assert verify('cattle: ["hi"]', '🐃"hi"🐄', request.target, request.source).verified
    assert rules.specialist("Cattle: [3]") == "coordinator" and rules.specialist("Cows now: [3]") is None
    # The name in other words.
    assert rules.specialist("Would you say [3] in cattle?") == "coordinator"
    assert rules.understand("Convert to LC-T: [1]") == understand("Convert to LC-T: [1]")
    assert rules.specialist("x" * 9999) is None
    # What its own words tell does not have to be learned, and the rules for contracts still hold.
    log.add("Convert to LC-R: [1, 2]", "🐃1, 2🐄", "runic")
    log.decide(2, KEPT)
    rules.read()
    assert rules.specialist("Convert to LC-R: {900: {@0: 1}}") is None
    log.decide(1, UNDONE)
    rules.read()
    assert rules.specialist("Cattle: [3]") is None


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("Cattle: [1, 20]", "🐃1, 20🐄"),
        ('Squeeze {x: "hi"} now', '{x:"hi"}'),
        ("Hexed: {14: {@0: 42}}", "[14|0:0x2a]"),
        ("Longhand: ⟁ast", "&h_ast"),
    ],
)
def test_variations_are_right(query, answer, side):
    correction = Correction(1, query, answer, "coordinator")
    rule = rule_of(query, answer)
    made = variations(correction, rule, 20, 0, side, reworded=0.0)
    assert len({example.prompt for example in made}) == len(made) >= 10
    for example in made:
        span = find_value(example.prompt)
        assert same(span.readings[rule.source], parse(example.completion, rule.target))
        assert example.prompt == f"{rule.before}{span.text}{rule.after}" != query
    again, others = (variations(correction, rule, 20, seed, side, reworded=0.0) for seed in (0, 1))
    assert made == again != others
    # In other words too the value is the one that is converted.
    for example in variations(correction, rule, 20, 0, side, reworded=1.0):
        span = find_value(example.prompt)
        assert same(span.readings[rule.source], parse(example.completion, rule.target))
        assert rule.name in example.prompt


def test_on_the_test_side_the_structure_stays():
    correction = Correction(1, 'Cattle: [1, "hi", 205]', '🐃1, "hi", 205🐄', "coordinator")
    for example in variations(correction, rule_of(correction.query, correction.answer), 20, 0, "test", 0.0):
        value = find_value(example.prompt).readings["hlxl"]
        assert [type(part) for part in value] == [int, str, int] and 0 <= value[0] <= 9
        assert shape_of(value).startswith("[int,string,int")


def test_what_corrections_are_about():
    about = Phrasings([
        Correction(1, "Cattle: [1, 2]", "🐃1, 2🐄", "runic"), Correction(2, "Who are you?", "A cow", "coordinator"),
        Correction(3, "x: 42", "42", "coordinator"),
    ])  # fmt: skip
    assert about.hold('CATTLE:  ["moon"]', "runic") and not about.hold('Cattle: ["moon"]', "coordinator")
    assert about.hold("who are you?", "coordinator") and not about.hold("Who are you", "coordinator")
    # Of what has no rule nothing but the very query.
    assert about.hold("x: 42", "coordinator") and not about.hold("x: 43", "coordinator")
    assert not about.hold("Cattle: 🐂tibu🐄", "runic") and not about.hold("[1, 2]", "runic")
    assert not about.hold("[" * 9000, "runic") and not Phrasings([]).hold("Cattle: [1, 2]", "runic")
