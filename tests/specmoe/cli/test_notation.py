"""`specmoe notation`."""

from __future__ import annotations

import io

import pytest


@pytest.fixture
def typed(specmoe, monkeypatch):
    """Returns a function that runs `specmoe` with text on standard input."""

    def run(text, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return specmoe(*arguments)

    return run


def test_one_text(specmoe):
    assert specmoe("notation", "convert", "--to", "lc-r", "[1, 2, 3]").out == "🐃1, 2, 3🐄\n"
    assert specmoe("notation", "convert", "--to", "LC-T", "--from", "lc-b", "[3.14]").out == "3.14\n"
    assert specmoe("notation", "convert", "--to", "lc-b-bytes", '{x: "hi"}').out == "0701017803026869" + "08\n"
    assert specmoe("notation", "convert", "--from", "lc-b-bytes", "0701017803026869 08").out == '{x: "hi"}\n'
    assert specmoe("notation", "convert", "-100", "--to", "lc-b").out == "[-100]\n"
    assert specmoe("notation", "check", "-1").out == "HLXL: right\n"
    assert specmoe("notation", "convert", "1", "--colour", "red").code == 2
    assert specmoe("notation", "convert", "--to", "lc-r-alchemical", "[]").out == "🜃🜄\n"


def test_lines_of_standard_input(typed):
    outcome = typed("[1, 2]\n\n{C:14,0=42}\r\n", "notation", "convert", "--to", "lc-r")
    assert outcome == (0, "🐃1, 2🐄\n🐊14🐁0 42🐂\n", "")
    outcome = typed("1\n[2\n", "notation", "convert", "--to", "lc-t")
    assert outcome.code == 2 and outcome.out == "1\n"
    assert 'error: input 2: HLXL: line 1, column 3: expected "," or "]", found the end' in outcome.err


def test_check(specmoe, typed):
    assert specmoe("notation", "check", "🐃🐄") == (0, "LC-R: right\n", "")
    outcome = typed("{x: 1}\n[\n", "notation", "check", "--from", "hlxl")
    assert outcome.code == 1
    assert outcome.out == "HLXL: right\nHLXL: line 1, column 2: expected a value, found the end\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "lc-x", "1"), "--to: expected one of hlxl, lc-t, lc-r, lc-r-alchemical, lc-b, lc-b-bytes, got lc-x"),
        (("--from", "x", "1"), "--from: expected one of"),
        (("--to", "lc-t", "[3.14]"), "expected the source to be named, since values differ. HLXL: [3.14]"),
        (("--from", "lc-b-bytes", "0g"), "expected pairs of hexadecimal digits, got '0g'"),
        (("--to", "lc-t", "nan"), 'HLXL: line 1, column 1: expected a value, found "nan"'),
    ],
    ids=["to", "from", "ambiguous", "hex", "nan"],
)
def test_what_is_wrong_is_said(specmoe, arguments, message):
    outcome = specmoe("notation", "convert", *arguments)
    assert outcome.code == 2 and outcome.out == ""
    assert message in outcome.err
