"""`specmoe specialists`: a coordinator and specialists for the HLX notations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import specialists_runtime
from .errors import reports_errors

specialists = typer.Typer(
    name="specialists", help="A coordinator and specialists for the HLX notations.", no_args_is_help=True
)


@specialists.callback(invoke_without_command=True)
@reports_errors
def _several(
    context: typer.Context,
    query: Annotated[str | None, typer.Option(help="Answer one query and end.", show_default=False)] = None,
    family: specialists_runtime.Folder = specialists_runtime.RUNS,
    memory: specialists_runtime.Memory = "3GiB",
) -> None:
    """A coordinator and specialists for the HLX notations."""
    if context.invoked_subcommand is None:
        if query is None:
            typer.echo(context.get_help())
        else:
            specialists_runtime.query([query], family=family, memory=memory)


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


specialists_runtime.register(specialists)
