"""`specmoe route`: which domain a query belongs to, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError

ROUTERS = ("trained", "keywords")


def route(
    query: Annotated[
        str | None, typer.Argument(help="The query; without it each line of standard input is one.")
    ] = None,
    router: Annotated[
        str, typer.Option(help=f"{' or '.join(ROUTERS)}, or a file written by a trained one.")
    ] = "trained",
) -> None:
    """Say which domain a query belongs to, and why."""
    if router not in ROUTERS and not Path(router).is_file():
        raise UsageError(f"--router: expected {' or '.join(ROUTERS)}, or a file, got {router}")
    from ..routing import KeywordRouter, LinearRouter, default_router

    if router == "keywords":
        explain = KeywordRouter().route
    elif router == "trained":
        explain = default_router().explain
    else:
        explain = LinearRouter.load(Path(router)).explain
    for text in [query] if query is not None else (line.rstrip("\n") for line in sys.stdin):
        said = explain(text)
        likely = ", ".join(f"{name} {weight:.1%}" for name, weight in said.best(3))
        typer.echo(f"{said.domain or 'no domain: the base answers'} ({said.confidence:.1%})")
        typer.echo(f"  likeliest: {likely}")
        typer.echo(f"  because of: {', '.join(said.reasons) or 'nothing that it knows'}")
