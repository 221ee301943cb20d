"""The table of values in all notations, in all directions, and what is written and read beside it."""

from __future__ import annotations

import itertools

import pytest

from specmoe.notation import NOTATIONS, Contract, Handle, NotationError, convert, parse, render, same

TEXTS = ("hlxl", "lc-t", "lc-r", "lc-b")
# A value, and its text in HLXL, LC-T, LC-R and LC-B.
TABLE = [
    (None, "null", "NULL", "∅", "[_]"),
    (True, "true", "TRUE", "⊤", "[T]"),
    (False, "false", "FALSE", "⊥", "[F]"),
    (42, "42", "42", "42", "[0x2a]"),
    (-100, "-100", "-100", "-100", "[-100]"),
    (65436, "65436", "65436", "65436", "[0xff9c]"),
    (0, "0", "0", "0", "[0x00]"),
    (256, "256", "256", "256", "[0x100]"),
    (3.14, "3.14", "3.14", "3.14", "[3.14]"),
    (3.0, "3.0", "3.0", "3.0", "[3.0]"),
    (1e23, "1e+23", "1e+23", "1e+23", "[1e+23]"),
    ("hi", '"hi"', '"hi"', '"hi"', '["hi"]'),
    ("", '""', '""', '""', '[""]'),
    ("0x2a", '"0x2a"', '"0x2a"', '"0x2a"', '["0x2a"]'),
    (
        'a"\\\n\t\r\x1b',
        r'"a\"\\\n\t\r\u{1b}"',
        r'"a\"\\\n\t\r\u{1b}"',
        r'"a\"\\\n\t\r\u{1b}"',
        r'["a\"\\\n\t\r\u{1b}"]',
    ),
    (Handle("ast"), "&h_ast", "@ast", "⟁ast", "[&ast]"),
    (b"data", 'b"data"', "#64617461", "⊠64617461", "[#64617461]"),
    (b"", 'b""', "#", "⊠", "[#]"),
    (b'"\\\n\x00\xff', r'b"\"\\\n\x00\xff"', "#225c0a00ff", "⊠225c0a00ff", "[#225c0a00ff]"),
    ([1, 2, 3], "[1, 2, 3]", "[1,2,3]", "🐃1, 2, 3🐄", "[[0x01,0x02,0x03]]"),
    ([], "[]", "[]", "🐃🐄", "[[]]"),
    ([[], [[]]], "[[], [[]]]", "[[],[[]]]", "🐃🐃🐄, 🐃🐃🐄🐄🐄", "[[[],[[]]]]"),
    ({"x": 10}, "{x: 10}", "{x:10}", "◇x: 10◆", "[{x:0x0a}]"),
    ({}, "{}", "{}", "◇◆", "[{}]"),
    ({"b": 1, "a": 2}, "{b: 1, a: 2}", "{b:1,a:2}", "◇b: 1, a: 2◆", "[{b:0x01,a:0x02}]"),
    ({"two words": 1}, '{"two words": 1}', '{"two words":1}', '◇"two words": 1◆', '[{"two words":0x01}]'),
    ({"14": 1}, '{"14": 1}', '{"14":1}', '◇"14": 1◆', '[{"14":0x01}]'),
    ({"C": 14}, "{C: 14}", '{"C":14}', "◇C: 14◆", "[{C:0x0e}]"),
    ({"x": 1, "C": 14}, "{x: 1, C: 14}", '{x:1,"C":14}', "◇x: 1, C: 14◆", "[{x:0x01,C:0x0e}]"),
    ({"null": None}, "{null: null}", "{null:NULL}", "◇null: ∅◆", "[{null:_}]"),
    (Contract(14, {0: 42}), "{14: {@0: 42}}", "{C:14,0=42}", "🐊14🐁0 42🐂", "[14|0:0x2a]"),
    (Contract(14), "{14: {}}", "{C:14}", "🐊14🐂", "[14|]"),
    (
        Contract(1000, {0: "search", 1: Handle("documents")}),
        '{1000: {@0: "search", @1: &h_documents}}',
        '{C:1000,0="search",1=@documents}',
        '🐊1000🐁0 "search"🐁1 ⟁documents🐂',
        '[1000|0:"search"|1:&documents]',
    ),
    (
        Contract(101, {0: "+", 1: Contract(14, {0: 1}), 2: Contract(14, {0: 2})}),
        '{101: {@0: "+", @1: {14: {@0: 1}}, @2: {14: {@0: 2}}}}',
        '{C:101,0="+",1={C:14,0=1},2={C:14,0=2}}',
        '🐊101🐁0 "+"🐁1 🐊14🐁0 1🐂🐁2 🐊14🐁0 2🐂🐂',
        '[101|0:"+"|1:[14|0:0x01]|2:[14|0:0x02]]',
    ),
    ([Contract(21)], "[{21: {}}]", "[{C:21}]", "🐃🐊21🐂🐄", "[[[21|]]]"),
]
BYTES = [
    (None, "00"),
    (True, "0a"),
    (False, "0b"),
    (42, "012a"),
    (-100, "019c7f"),
    (64, "01c000"),
    (3.14, "0240091eb851eb851f"),
    (-0.0, "020000000000000000"),
    ("hi", "03026869"),
    (b"data", "040464617461"),
    ([1, 2, 3], "050301010102010306"),
    ({"b": 1, "a": True}, "070201610a0162010108"),
    (Handle("ast"), "0903617374"),
    (Contract(1000, {1: None, 0: 42}), "0ce8070200012a01000d"),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[1] for row in TABLE])
def test_every_value_in_every_notation(row):
    value, *texts = row
    for (source, text), (to, wanted) in itertools.product(zip(TEXTS, texts, strict=True), repeat=2):
        assert convert(text, to, source) == wanted
        assert same(parse(text, source), value)
        assert render(value, to) == wanted
    for source, text in zip(TEXTS, texts, strict=True):
        data = convert(text, "lc-b-bytes", source)
        assert same(parse(data), value)


@pytest.mark.parametrize(("value", "data"), BYTES, ids=[data for _, data in BYTES])
def test_bytes(value, data):
    assert render(value, "lc-b-bytes").hex() == data
    assert same(parse(bytes.fromhex(data)), value)


def test_both_dialects_are_read_and_the_first_is_written():
    value = [Contract(14, {0: 42}), {"x": []}]
    text = "🜃🜊14🜁0 42🜂, ◇x: 🜃🜄◆🜄"
    assert render(value, "lc-r-alchemical") == text
    assert convert(text, "lc-r") == "🐃🐊14🐁0 42🐂, ◇x: 🐃🐄◆🐄"
    assert parse("🐃🜊14🐁0 42🐂🜄", "lc-r") == [Contract(14, {0: 42})]
    with pytest.raises(ValueError, match="expected animals or alchemical, got 'runes'"):
        from specmoe.notation import lcr

        lcr.render(value, "runes")


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        ("hlxl", ' { x :1,\n\ty:[ 1 ,2 ] , "z" : { 14 : { @0 : 1 , @2:2 } } } '),
        ("lc-t", " { x : 1 ,\ty:[1, 2],z:{ C : 14 , 0 = 1,2 = 2 } }\r\n"),
        ("lc-r", "◇x:1,y:🐃 1,2 🐄 , z :🐊 14 🐁 0   1🐁2\n2 🐂 ◆"),
        ("lc-b", "[ { x:0x01 , y : [0x01, 0x02],z: [ 14 | 0 : 0x01 | 2:0x02 ] } ] "),
    ],
)
def test_spaces_between_tokens_are_free(notation, text):
    assert same(parse(text, notation), {"x": 1, "y": [1, 2], "z": Contract(14, {0: 1, 2: 2})})


def test_numbers():
    assert same(parse("-0", "hlxl"), 0) and same(parse("-0.0", "hlxl"), 0.0) and same(parse("-1e-999", "hlxl"), 0.0)
    assert same(parse("1E3", "lc-t"), 1000.0) and same(parse("2.50", "lc-t"), 2.5)
    assert render(-0.0, "hlxl") == "0.0"
    assert not same(1, 1.0) and not same(1, True) and not same(0, None)
    for notation in ("hlxl", "lc-b", "lc-b-bytes"):
        for number in (10**5000 + 7, -(10**5000), 3**20001, 10**1024, 10**512 - 1, 10**512):
            assert same(parse(render(number, notation), notation), number)


def test_strings_may_be_escaped_more_than_needed():
    assert parse(r'"\u{48}\u{1F40a}"', "hlxl") == "H🐊"
    assert parse(r'b"\x41"', "hlxl") == b"A"


def test_order_is_kept_in_text_and_means_nothing():
    left, right = parse("{b: 1, a: 2}", "hlxl"), parse("{a: 2, b: 1}", "hlxl")
    assert same(left, right) and left == right
    assert render(left, "lc-b-bytes") == render(right, "lc-b-bytes")
    fields = parse("{C:1,7=1,3=2}", "lc-t")
    assert render(fields, "hlxl") == "{1: {@7: 1, @3: 2}}"
    assert parse(render(fields, "lc-b-bytes")) == fields


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "expected a finite float, found nan"),
        (float("-inf"), "expected a finite float, found -inf"),
        ([("tuple",)], "expected None, bool, int, float, str, bytes, Handle, list, dict or Contract, found tuple"),
        ({1: 2}, "expected keys that are strings, found 1"),
        ("half \ud800", r"found half of a surrogate pair, U\+D800"),
        ({"\udfff": 1}, r"found half of a surrogate pair, U\+DFFF"),
    ],
    ids=["nan", "inf", "tuple", "key", "surrogate", "surrogate-key"],
)
def test_what_has_no_text_is_refused(value, message):
    for name in NOTATIONS:
        with pytest.raises(NotationError, match=message) as error:
            render(value, name)
        assert error.value.offset is None and "value: " in str(error.value)


def test_handles_and_contracts_are_checked():
    for name in ("", "1a", "a b", "é", "a\n", 3):
        with pytest.raises(ValueError, match="Handle: name: expected letters"):
            Handle(name)
    for number, fields in ((-1, {}), (True, {}), (1, {-1: 0}), (1, {"x": 0}), (1.0, {})):
        with pytest.raises(ValueError, match="Contract: expected an id and field numbers of 0 or more"):
            Contract(number, fields)
    broken = Contract(1)
    broken.fields["x"] = 1
    for name in NOTATIONS:
        with pytest.raises(NotationError, match="expected ids and field numbers of 0 or more, found 'x'"):
            render(broken, name)
