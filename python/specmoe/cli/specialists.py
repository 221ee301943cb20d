"""`specmoe specialists`: a coordinator and specialists for the HLX notations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import reports_errors

specialists = typer.Typer(
    name="specialists", help="A coordinator and specialists for the HLX notations.", no_args_is_help=True
)


@specialists.callback()
def _several() -> None:
    """A coordinator and specialists for the HLX notations."""


@specialists.command()
@reports_errors
def corpus(
    output: Annotated[Path, typer.Option(help="Folder for the files.")],
    size: Annotated[int, typer.Option(min=1, help="Training examples of each specialist.")] = 20_000,
    test_size: Annotated[int, typer.Option(min=1, help="Test examples of each specialist.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this specialist; may be repeated.", show_default=False)
    ] = None,
) -> None:
    """Generate the corpora that the specialists are trained and tested on, as JSONL."""
    from ..specialists.corpora import CorpusSettings, write_corpora

    settings = CorpusSettings(size=size, test_size=test_size, seed=seed)
    write_corpora(output, settings, only, lambda path, count: typer.echo(f"{path}: {count} examples"))
