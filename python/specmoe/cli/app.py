"""The Typer application behind `specmoe`."""

from __future__ import annotations

import importlib.util

import typer

from .errors import reports_errors
from .generate import generate
from .train import train

app = typer.Typer(
    name="specmoe",
    help="Train, run and offload Mixture-of-Experts transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (train, generate):
    app.command()(reports_errors(_command))
if importlib.util.find_spec("specmoe.cli.demo") is not None:
    app.command()(reports_errors(importlib.import_module("specmoe.cli.demo").demo))


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
