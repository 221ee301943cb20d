"""`specmoe notation`: translate between the HLX notations, and check texts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from ..notation import NOTATIONS, convert, detect, parse
from ..notation.convert import notation_named
from .errors import FAILURE_EXIT_CODE, UsageError, reports_errors

notation = typer.Typer(name="notation", help="Translate between the HLX notations.", no_args_is_help=True)
_NAMES = ", ".join(NOTATIONS)
_BYTES = "lc-b-bytes"

Text = Annotated[
    str | None, typer.Argument(help="One value; without it each line of standard input is one.", show_default=False)
]
Source = Annotated[
    str | None,
    typer.Option("--from", help="The text's notation. Default: found out where it is clear.", show_default=False),
]


# Otherwise -100 would be taken for an option.
_NEGATIVE_NUMBERS = {"ignore_unknown_options": True}


@notation.command("convert", context_settings=_NEGATIVE_NUMBERS)
@reports_errors
def convert_texts(
    text: Text = None,
    to: Annotated[str, typer.Option(help=f"One of {_NAMES}; bytes are in hexadecimal.")] = "hlxl",
    source: Source = None,
) -> None:
    """Write values in another notation."""
    _known("--to", to)
    _known("--from", source)

    def converted(line: str) -> str:
        result = convert(_given(line, source), to, source)
        return result.hex() if isinstance(result, bytes) else result

    _each(text, converted)


@notation.command(context_settings=_NEGATIVE_NUMBERS)
@reports_errors
def check(text: Text = None, source: Source = None) -> None:
    """Say which notation a text is of, or where it is wrong; ends with 1 where one is wrong."""
    _known("--from", source)

    def checked(line: str) -> str:
        given = _given(line, source)
        if source is None:
            return f"{NOTATIONS[detect(given)[0]].title}: right"
        parse(given, source)
        return f"{notation_named(source).title}: right"

    wrong = 0
    for line in _lines(text):
        try:
            typer.echo(checked(line))
        except ValueError as error:
            wrong += 1
            typer.echo(str(error))
    if wrong:
        raise typer.Exit(FAILURE_EXIT_CODE)


def _known(option: str, name: str | None) -> None:
    if name is not None and name.lower() not in NOTATIONS:
        raise UsageError(f"{option}: expected one of {_NAMES}, got {name}")


def _given(line: str, source: str | None) -> str | bytes:
    if source is None or source.lower() != _BYTES:
        return line
    try:
        return bytes.fromhex(line)
    except ValueError:
        raise UsageError(f"{_BYTES}: expected pairs of hexadecimal digits, got {line[:40]!r}") from None


def _each(text: str | None, write: Callable[[str], str]) -> None:
    for number, line in enumerate(_lines(text), 1):
        try:
            typer.echo(write(line))
        except ValueError as error:
            raise UsageError(str(error) if text is not None else f"input {number}: {error}") from error


def _lines(text: str | None) -> Iterator[str]:
    """Yield the values: the argument, or the lines of standard input that are not empty."""
    if text is not None:
        yield text
        return
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: expected UTF-8: {error}") from error
