"""The Typer application behind `specmoe`."""

from __future__ import annotations

import logging

import typer

from .demo import demo
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
for _command in (train, generate, demo):
    app.command()(reports_errors(_command))


def main() -> None:
    """Runs the command line."""
    # transformers' Trainer imports bitsandbytes where it is installed, which then advises on kernels not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    app()


if __name__ == "__main__":
    main()
