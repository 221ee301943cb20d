"""LC-R, the runic notation, `◇name: "moon"◆`, in two dialects: `🐊14🐁0 42🐂` and `🜊14🜁0 42🜂`."""

from __future__ import annotations

from .parser import TextParser, readers
from .printer import TextPrinter
from .values import Contract, Value

NAME = "LC-R"
# The glyphs of each dialect: contract, field, contract's end, array, array's end. The first is written unless asked.
DIALECTS: dict[str, str] = {
    "animals": "\U0001f40a\U0001f401\U0001f402\U0001f403\U0001f404",
    "alchemical": "\U0001f70a\U0001f701\U0001f702\U0001f703\U0001f704",
}
_CONTRACT, _FIELD, _END, _ARRAY, _ARRAY_END = ("".join(glyphs) for glyphs in zip(*DIALECTS.values(), strict=True))
_OBJECT, _OBJECT_END = "\u25c7", "\u25c6"
_HANDLE, _BYTES = "\u27c1", "\u22a0"
_NULL, _TRUE, _FALSE = "\u2205", "\u22a4", "\u22a5"


def parse(text: str) -> Value:
    """Returns the value of a text in LC-R, in either dialect or in both.

    Raises:
        NotationError: with the place, what was expected there and what was found.
    """
    return Parser(text).whole()


def render(value: Value, dialect: str = "animals") -> str:
    """Returns a value's text in LC-R.

    Args:
        value: the value.
        dialect: one of `DIALECTS`.

    Raises:
        NotationError: a value that has none: NaN, an infinity, another type, more than 64 levels.
        ValueError: another dialect.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"LC-R: dialect: expected {' or '.join(DIALECTS)}, got {dialect!r}")
    return _Printer(DIALECTS[dialect]).value(value)


class Parser(TextParser):
    """Reads what differs from other notations."""

    __slots__ = ()
    name = NAME

    def glyph_array(self) -> list[Value]:
        return self.array(_ARRAY_END)

    def glyph_object(self) -> dict[str, Value]:
        return self.object(_OBJECT_END)

    def contract(self) -> Contract:
        self.enter()
        number = self.cardinal("a contract's id")
        fields: dict[int, Value] = {}
        while (char := self.peek()) not in _END:
            if char not in _FIELD:
                raise self.error(f'"{_FIELD[0]}" or "{_END[0]}"')
            self.pos += 1
            self.field(fields, " ")
        self.leave()
        return Contract(number, fields)

    def expect(self, char: str) -> None:
        if char != " ":
            super().expect(char)
        elif self.text[self.pos] not in " \t\r\n":
            raise self.error("a space before the field's value")

    readers = readers(
        {_NULL: None, _TRUE: True, _FALSE: False},
        {
            _HANDLE: TextParser.handle,
            _BYTES: TextParser.signed_bytes,
            _OBJECT: glyph_object,
            **dict.fromkeys(_ARRAY, glyph_array),
            **dict.fromkeys(_CONTRACT, contract),
        },
    )


class _Printer(TextPrinter):
    name = NAME
    null, true, false = _NULL, _TRUE, _FALSE
    object = _OBJECT, _OBJECT_END
    comma, colon = ", ", ": "
    handle, bytes_sign = _HANDLE, _BYTES

    def __init__(self, glyphs: str) -> None:
        super().__init__()
        self.opening, self.field, self.closing = glyphs[0], glyphs[1], glyphs[2]
        self.array = glyphs[3], glyphs[4]

    def contract(self, value: Contract) -> str:
        fields = "".join([f"{self.field}{number} {text}" for number, text in self.fields(value)])
        return f"{self.opening}{self.cardinal(value.id)}{fields}{self.closing}"
