"""The Typer application behind `specmoe`."""

from __future__ import annotations

import logging
import os

import typer

from .demo import demo
from .errors import reports_errors
from .generate import generate
from .hierarchical import hierarchical
from .lora import lora
from .notation import notation
from .offload import doctor, offload
from .predict import predict
from .route import route
from .specialists import specialists
from .store import store
from .trace import trace
from .train import train

app = typer.Typer(
    name="specmoe",
    help="Train, run and offload Mixture-of-Experts transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (train, generate, demo, doctor, route):
    app.command()(reports_errors(_command))
app.add_typer(trace)
app.add_typer(predict)
app.add_typer(store, name="store")
app.add_typer(offload, name="offload")
app.add_typer(hierarchical)
app.add_typer(lora, name="lora")
app.add_typer(notation)
app.add_typer(specialists)


def main() -> None:
    """Runs the command line."""
    # Threads that wait should sleep: spinning ones take the cores from the reader threads and from other programs. With
    # two cores shared by seven busy processes a training step of 16 x 128 tokens took 0.9 s in place of 2.7.
    # Torch reads this when a command loads it; what the user has set stays.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        # But not at once: a small model's operations come closer to one another than a thread wakes up.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # transformers' Trainer imports bitsandbytes where it is installed, which then advises on kernels not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    app()


if __name__ == "__main__":
    main()
