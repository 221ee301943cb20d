"""Counting, and what a report says of it."""

from __future__ import annotations

import json

import pytest
from tiny_base import sides

from specmoe.specialists.evaluation import Evaluation, write_report
from specmoe.specialists.evaluation.cases import test_cases as held_out_cases
from specmoe.specialists.evaluation.report import markdown
from specmoe.specialists.evaluation.scores import ALONE, CODEC, VERIFIED, Tally


def counted():
    """Of ten runic conversions the model alone has 7, the system answers 9, one of them wrong; ascii has all."""
    found = Evaluation()
    for name in ("ascii", "runic"):
        examples = [e for e in sides(name, 20, "test") if e.is_conversion][:10]
        for place, example in enumerate(examples):
            poor = name == "runic"
            found.count(ALONE, name, example, True, not poor or place < 7)
            found.count(VERIFIED, name, example, not poor or place < 9, not poor or place < 8)
            found.count(CODEC, name, example, True, True)
        found.loss[name] = 0.25
    found.routing = {"rules": 1.0, "trained": 0.995}
    found.texts = {"runic": {"explain": Tally(4, 4, 3)}}
    found.figures = {
        "adapter bytes": {"ascii": 2048, "runic": 4096},
        "base bytes": 2**20,
        "load seconds, base and all adapters": 0.5,
        "batch": 8,
        "tokens per second, generated, in batches": 1234.0,
        "peak memory bytes": 2**28,
        "peak memory bytes, before loading": 2**27,
    }
    return found


def test_precision_is_of_what_was_answered_and_coverage_of_all():
    runic = counted().total(VERIFIED, ["runic"])
    assert (runic.exact, runic.coverage, runic.precision) == (0.8, 0.9, pytest.approx(8 / 9))
    both = counted().total(ALONE)
    assert (both.cases, both.right, both.exact) == (20, 17, 0.85)
    assert Tally(3).precision == 1.0


def test_every_conversion_is_in_a_kind_and_in_a_pair_of_notations():
    for groups in counted().tallies[ALONE].values():
        pairs = [tally.cases for group, tally in groups.items() if " to " in group]
        kinds = [tally.cases for group, tally in groups.items() if " to " not in group and group != "all"]
        assert sum(pairs) == sum(kinds) == groups["all"].cases == 10


def test_the_report_has_each_way_of_answering_in_its_own_column(tmp_path):
    files = write_report(counted(), tmp_path / "report")
    assert [path.name for path in files] == [
        "evaluation.json", "evaluation.md", "exact-match.png", "exact-match-notations.png",
    ]  # fmt: skip
    assert all(path.stat().st_size > 0 for path in files)
    told = json.loads(files[0].read_text())
    assert told["conversions"]["with verification"]["runic"]["all"]["right"] == 8
    text = markdown(counted())
    assert "| runic | 10 | 70.0 % | 88.89 % | 90.0 % | 100.0 % | 0.2500 |" in text
    assert "| runic | explain | 4 | 75.0 % |" in text


def test_the_cases_are_of_the_test_side_and_as_many_as_asked_for():
    cases = held_out_cases(("coordinator", "ascii", "gpu"), 50, seed=0)
    assert [sum(e.is_conversion for e in each) for each in cases.values()] == [17, 17, 16]
    trained = {e.shape for name in cases for e in sides(name, 300)} - {""}
    assert not trained & {e.shape for each in cases.values() for e in each if e.is_conversion}
    with pytest.raises(ValueError, match="size: expected at least 3"):
        held_out_cases(("coordinator", "ascii", "gpu"), 2, seed=0)
