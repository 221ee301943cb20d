"""Values among other words."""

from __future__ import annotations

import pytest

from specmoe.notation import Contract, Handle, find_value


@pytest.mark.parametrize(
    ("text", "found", "readings"),
    [
        ("Convert to LC-R: [1, 2, 3]", "[1, 2, 3]", {"hlxl": [1, 2, 3], "lc-t": [1, 2, 3]}),
        ('Convert the LC-B ["hi"] to HLXL', '["hi"]', {"hlxl": ["hi"], "lc-t": ["hi"], "lc-b": "hi"}),
        ("What is @ast in LC-R?", "@ast", {"lc-t": Handle("ast")}),
        ("{C:14,0=42} to lc-r", "{C:14,0=42}", {"lc-t": Contract(14, {0: 42})}),
        ("I need 🐊14🐁0 42🐂, thanks", "🐊14🐁0 42🐂", {"lc-r": Contract(14, {0: 42})}),
        ("from LC-T to LC-R: -5", "-5", {"hlxl": -5, "lc-t": -5, "lc-r": -5}),
        ("⊤ is what?", "⊤", {"lc-r": True}),
        ('the string "null, [1]" in LC-T', '"null, [1]"', dict.fromkeys(("hlxl", "lc-t", "lc-r"), "null, [1]")),
    ],
)
def test_the_longest_value(text, found, readings):
    span = find_value(text)
    assert span is not None and span.text == found and text[span.start :].startswith(found)
    assert span.readings == readings


@pytest.mark.parametrize("text", ["", "hello LC-R, nullx and x1", "[", "LC-B", "a-1", "\x00"])
def test_no_value(text):
    assert find_value(text) is None


def test_too_long():
    with pytest.raises(ValueError, match="expected at most 4096 characters, got 5000"):
        find_value("[" * 5000)
    assert find_value("[" * 4096) is None
