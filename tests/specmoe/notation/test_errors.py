"""Where a text is wrong, what was expected there, and what was found."""

from __future__ import annotations

import pytest

from specmoe.notation import (
    MAX_DEPTH,
    NOTATIONS,
    AmbiguousNotationError,
    Contract,
    NotationError,
    UnknownNotationError,
    convert,
    detect,
    parse,
    render,
)

WRONG = [
    ("hlxl", "", 1, 1, "a value", "the end"),
    ("hlxl", "  ", 1, 3, "a value", "the end"),
    ("hlxl", "[1, 2", 1, 6, '"," or "]"', "the end"),
    ("hlxl", "[1 2]", 1, 4, '"," or "]"', '"2"'),
    ("hlxl", "[1,]", 1, 4, "a value", '"]"'),
    ("hlxl", "[1]]", 1, 4, "the end", '"]"'),
    ("hlxl", "{x 1}", 1, 4, '":"', '"1"'),
    ("hlxl", "{x: 1,\n y: ?}", 2, 5, "a value", '"?"'),
    ("hlxl", "{x: 1, x: 2}", 1, 8, "a key that is not there yet", '"x"'),
    ("hlxl", "{é: 1}", 1, 2, "a key", '"é"'),
    ("hlxl", "{14: 5}", 1, 6, '"{"', '"5"'),
    ("hlxl", "{14: {0: 5}}", 1, 7, '"@"', '"0"'),
    ("hlxl", "{14: {@0: 5, @0: 6}}", 1, 15, "a field that is not there yet", '"0"'),
    ("hlxl", "{14: {@0: 5}, 1: 2}", 1, 13, '"}"', '","'),
    ("hlxl", "&ast", 1, 1, 'a handle, which begins with "&h_"', '"&"'),
    ("hlxl", "&h_1", 1, 4, "a handle's name", '"1"'),
    ("hlxl", 'b"é"', 1, 3, "a printable ASCII character or \\xNN", '"é"'),
    ("hlxl", 'b"a', 1, 4, 'a closing "', "the end"),
    ("hlxl", 'b"\\xFF"', 1, 3, '\\", \\\\, \\n, \\t, \\r or \\xNN', '"\\"'),
    ("hlxl", "nan", 1, 1, "a value", '"nan"'),
    ("hlxl", "-inf", 1, 2, "digits", '"inf"'),
    ("hlxl", "nullx", 1, 1, "a value", '"nullx"'),
    ("hlxl", "007", 1, 1, "a number without leading zeros", '"007"'),
    ("hlxl", "1e400", 1, 1, "a float in the range of 64 bits", '"1e400"'),
    ("hlxl", "1.", 1, 2, "the end", '"."'),
    ("hlxl", '"abc', 1, 5, 'a closing "', "the end"),
    ("hlxl", '"a\nb"', 1, 3, "an escape for a control character", "U+000A"),
    ("hlxl", '"a\x00b"', 1, 3, "an escape for a control character", "U+0000"),
    ("hlxl", '"\\q"', 1, 2, '\\", \\\\, \\n, \\t, \\r or \\u{...}', '"\\"'),
    ("hlxl", '"\\u{d800}"', 1, 2, "a Unicode character", '"\\"'),
    ("hlxl", '"\\u{110000}"', 1, 2, "a Unicode character", '"\\"'),
    ("hlxl", "\x00", 1, 1, "a value", "U+0000"),
    ("lc-t", "null", 1, 1, "a value", '"null"'),
    ("lc-t", "{x:1,C:14}", 1, 6, 'a key; this one is written "C", since C alone begins a contract', '"C"'),
    ("lc-t", "{C:x}", 1, 4, "a contract's id", '"x"'),
    ("lc-t", "{C:14 0=1}", 1, 7, '"," or "}"', '"0"'),
    ("lc-t", "{C:14,0:1}", 1, 8, '"="', '":"'),
    ("lc-t", "{C:014}", 1, 4, "a number without leading zeros", '"014"'),
    ("lc-t", "#646", 1, 4, "pairs of lower-case hexadecimal digits", '"6"'),
    ("lc-t", "#6A", 1, 2, "pairs of lower-case hexadecimal digits", '"6A"'),
    ("lc-t", "@é", 1, 2, "a handle's name", '"é"'),
    ("lc-r", "🐃1, 2", 1, 6, '"," or "🐄"', "the end"),
    ("lc-r", "◇x: 1🐄", 1, 6, '"," or "◆"', '"🐄"'),
    ("lc-r", "🐊14🐁0🐂", 1, 6, "a space before the field's value", '"🐂"'),
    ("lc-r", "🐊14 0 1🐂", 1, 5, '"🐁" or "🐂"', '"0"'),
    ("lc-r", "🐊🐂", 1, 2, "a contract's id", '"🐂"'),
    ("lc-b", "42", 1, 1, '"["', '"42"'),
    ("lc-b", "[42]", 1, 2, "an integer in hexadecimal, such as 0x2a", '"42"'),
    ("lc-b", "[0x2A]", 1, 5, "lower-case hexadecimal digits", '"A"'),
    ("lc-b", "[0x2]", 1, 2, "two hexadecimal digits, or as many as there have to be", '"0x2"'),
    ("lc-b", "[0x00ff]", 1, 2, "two hexadecimal digits, or as many as there have to be", '"0x00ff"'),
    ("lc-b", "[_", 1, 3, '"]"', "the end"),
    ("lc-b", "[14|0:_,1:_]", 1, 8, '"|" or "]"', '","'),
    ("lc-b", "[T][F]", 1, 4, "the end", '"["'),
]
WRONG_BYTES = [
    ("", 0, "a value's tag", "the end"),
    ("0e", 0, "a value's tag", "0x0e"),
    ("0000", 1, "the end", "0x00"),
    ("01", 1, "an integer in LEB128 of the least length", "the end"),
    ("018000", 1, "an integer in LEB128 of the least length", "0x80"),
    ("01ff7f", 1, "an integer in LEB128 of the least length", "0xff"),
    ("0180", 1, "an integer in LEB128 of the least length", "0x80"),
    ("027ff8000000000000", 1, "a finite float", "0x7f"),
    ("02fff0000000000000", 1, "a finite float", "0xff"),
    ("0200", 1, "8 bytes, with 1 left", "0x00"),
    ("0302ff61", 2, "UTF-8", "0xff"),
    ("0303eda080", 2, "UTF-8", "0xed"),
    ("03ffffffff0f61", 6, "4294967295 bytes, with 1 left", "0x61"),
    ("05ffffffff0f00", 1, "a count of at most the 1 bytes that follow", "0xff"),
    ("05010008", 3, "06, the array's end", "0x08"),
    ("0702016200016100", 5, "a key that comes after the one before it", "0x01"),
    ("0702016100016100", 5, "a key that comes after the one before it", "0x01"),
    ("0901", 2, "1 bytes, with 0 left", "the end"),
    ("090131", 1, "a handle's name", "0x01"),
    ("0c01020100000000", 5, "a field that comes after the one before it", "0x00"),
    ("0c010006", 3, "0d, the contract's end", "0x06"),
]


@pytest.mark.parametrize(
    ("notation", "text", "line", "column", "expected", "found"), WRONG, ids=[f"{row[0]}-{row[1]!r}" for row in WRONG]
)
def test_position_expectation_and_finding(notation, text, line, column, expected, found):
    with pytest.raises(NotationError) as caught:
        parse(text, notation)
    error = caught.value
    assert (error.line, error.column, error.expected, error.found) == (line, column, expected, found)
    assert error.notation == NOTATIONS[notation].title
    assert error.offset == sum(len(part) + 1 for part in text.split("\n")[: line - 1]) + column - 1
    assert str(error) == f"{error.notation}: line {line}, column {column}: expected {expected}, found {found}"


@pytest.mark.parametrize(("data", "offset", "expected", "found"), WRONG_BYTES, ids=[row[0] for row in WRONG_BYTES])
def test_bytes_have_offsets(data, offset, expected, found):
    with pytest.raises(NotationError) as caught:
        parse(bytes.fromhex(data))
    assert str(caught.value) == f"LC-B bytes: byte {offset}: expected {expected}, found {found}"
    assert caught.value.offset == offset and caught.value.line is None


def _inside(value, name):
    """Returns a value's text as it is inside of an array."""
    text = render([value], name)
    return text[2:-1] if name == "lc-b-bytes" else text[2:-2] if name == "lc-b" else text[1:-1]


@pytest.mark.parametrize("name", NOTATIONS)
def test_64_levels_and_no_more(name):
    def nested(levels, wrap, value):
        for _ in range(levels):
            value = wrap(value)
        return value

    for wrap in (lambda v: [v], lambda v: {"x": v}, lambda v: Contract(1, {0: v})):
        text = render(nested(MAX_DEPTH, wrap, 1), name)
        assert render(parse(text, name), name) == text
        with pytest.raises(NotationError, match="expected at most 64 levels, found one more"):
            render(nested(MAX_DEPTH + 1, wrap, 1), name)
        deepest = render(nested(MAX_DEPTH, wrap, "probe"), name)
        deeper = deepest.replace(_inside("probe", name), _inside(wrap("probe"), name))
        with pytest.raises(NotationError, match="expected at most 64 levels"):
            parse(deeper, name)
    endless: list = []
    endless.append(endless)
    with pytest.raises(NotationError, match="expected at most 64 levels"):
        render(endless, name)


@pytest.mark.parametrize("opening", ["[", "{x:", "{1:{@0:", "{C:1,0=", "🐃", "◇x:", "🐊1🐁0 ", "[1|0:", "[{x:"])
def test_a_million_brackets_are_no_recursion_error(opening):
    for name in ("hlxl", "lc-t", "lc-r", "lc-b"):
        with pytest.raises(NotationError):
            parse(opening * 1_000_000, name)
    with pytest.raises(NotationError):
        parse(bytes([5, 1]) * 1_000_000)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[1, 2, 3]", "hlxl"),
        ("42", "hlxl"),
        ("{x:10}", "hlxl"),
        ("NULL", "lc-t"),
        ("{C:14,0=42}", "lc-t"),
        ("⟁ast", "lc-r"),
        ("[0x2a]", "lc-b"),
        ("[[0x01,3.5]]", "lc-b"),
        (b"\x00", "lc-b-bytes"),
    ],
)
def test_the_source_is_found_where_the_text_says_it(text, name):
    assert detect(text)[0] == name


def test_an_ambiguous_source_is_said():
    with pytest.raises(AmbiguousNotationError, match=r"HLXL: \[3.14\], LC-T: \[3.14\], LC-B: 3.14"):
        convert("[3.14]", "lc-r")
    with pytest.raises(AmbiguousNotationError, match=r"HLXL: \{C: 14\}, LC-T: \{14: \{\}\}"):
        convert("{C:14}", "lc-r")
    assert convert("[3.14]", "lc-r", "lc-b") == "3.14"


def test_what_nothing_reads_has_the_error_that_comes_last():
    with pytest.raises(NotationError, match="LC-T: line 1, column 8: expected"):
        convert("{C:14,0", "lc-r")


def test_unknown_names_are_said():
    for call in (lambda: convert("1", "lc-x"), lambda: parse("1", "lc-x"), lambda: render(1, "lc-x")):
        with pytest.raises(UnknownNotationError, match="expected hlxl, lc-t, lc-r, .*, got 'lc-x'") as error:
            call()
        assert isinstance(error.value, LookupError)
    assert convert("1", "LC-B") == "[0x01]"
    with pytest.raises(NotationError, match="expected str, found bytes"):
        parse(b"1", "hlxl")
    with pytest.raises(NotationError, match="expected bytes, found str"):
        parse("1", "lc-b-bytes")
