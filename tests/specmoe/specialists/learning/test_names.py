"""What corrections call a notation."""

from __future__ import annotations

import pytest

from specmoe.specialists.learning.log import Correction
from specmoe.specialists.learning.names import name_in, names
from specmoe.specialists.learning.rules import Phrasings, Rule, rule_of
from specmoe.specialists.learning.variations import in_plain_words, variations


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("Convert ", " to herd signs", "herd signs"),
        ("I would adore ", " in Livestock", "Livestock"),
        ("My pasture form of ", "?", "pasture form"),
        ("Ox-marks:  ", "", "Ox-marks"),
        ("herd, signs: ", "", "signs"),
        ("Could you please convert ", " for me", ""),
        ("", "", ""),
    ],
)
def test_name(before, after, name):
    assert name_in(before, after) == name


def test_a_name_among_other_words():
    assert names("Please put it into HERD\n signs, quickly", "herd signs")
    assert not names("the herd and its signs", "herd signs") and not names("herd signsmith", "herd signs")


def test_the_name_is_found_in_other_words():
    herd = Correction(1, "Convert [7, 50] to herd signs", "🐃7, 50🐄", "coordinator")
    about = Phrasings([herd, Correction(2, "Use signs on [1, 2]", "[1,2]", "ascii")])
    rule, span = about.find("Would you say {x: 10} in Herd Signs!")
    assert (rule.target, rule.specialist, span.text) == ("lc-r", "coordinator", "{x: 10}")
    assert about.find("signs of [1, 2], please")[0].target == "lc-t"
    assert about.hold("herd signs: {x: 10}", "coordinator") and not about.hold("herd signs: {x: 10}", "runic")
    assert rule.name == "herd signs" and rule_of("Convert to LC-R: [1, 2]", "🐃1, 2🐄").name == ""
    # The query's own words say another thing, or want no value; or there is none, or it is of another notation.
    for text in ("Convert [1, 2] from herd signs to LC-T", "Explain [1, 2] in herd signs", "What are herd signs?",
                 "⟁river in herd signs"):  # fmt: skip
        assert about.find(text) is None, text


def test_one_name_for_two_things_is_none():
    one = Correction(1, "Convert [7, 50] to herd signs", "🐃7, 50🐄", "coordinator")
    other = Correction(2, "herd signs: [7, 50]", "[7,50]", "coordinator")
    about = Phrasings([one, other])
    assert about.find("herd signs for [1, 2]") is None
    assert about.find("Convert [1, 2] to herd signs")[0].target == "lc-r"
    assert about.find("Herd signs: [1, 2]")[0].target == "lc-t"
    # The same phrasing again: what was said last counts.
    again = Correction(3, "Convert [7, 51] to herd signs", "[7,51]", "coordinator")
    assert Phrasings([one, again]).find("Convert [1, 2] to herd signs")[0].target == "lc-t"


def test_half_of_what_is_learned_is_in_other_words():
    correction = Correction(1, "Convert [7, 50] to herd signs", "🐃7, 50🐄", "coordinator")
    rule = Rule("Convert ", " to herd signs", "hlxl", "lc-r", "coordinator")
    found = variations(correction, rule, 40, 0)
    same = [each for each in found if each.prompt.startswith("Convert ") and each.prompt.endswith(" to herd signs")]
    assert len(found) == 40 and 10 < len(same) < 30
    about = Phrasings([correction])
    assert all(about.hold(each.prompt, "coordinator") for each in found)
    assert {in_plain_words(each, rule).prompt.partition(": ")[0] for each in found} == {"Convert from HLXL to LC-R"}
    # Without a name there are no other words.
    plain = Correction(2, "Convert to LC-R: [7, 50]", "🐃7, 50🐄", "coordinator")
    told = Rule("Convert to LC-R: ", "", "hlxl", "lc-r", "coordinator")
    assert all(each.prompt.startswith("Convert to LC-R: ") for each in variations(plain, told, 10, 0))
