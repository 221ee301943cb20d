"""`specmoe store`: build, verify and describe the file that holds a model's experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError, reports_errors
from .progress import progress_bar

store = typer.Typer(help="The file that holds a model's experts: build it, check it.", no_args_is_help=True)
StorePath = Annotated[Path, typer.Argument(help="A store, as `specmoe store build` writes it.")]


def build(
    model: Annotated[Path, typer.Option(help="Directory of a model: config.json and safetensors files.")],
    out: Annotated[Path, typer.Option(help="The store to write.")],
    quantize: Annotated[
        str | None, typer.Option(help="nf4 or int8; the weights as they are by default.", show_default=False)
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="A quarter less on disk without loss, for bfloat16.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Do not continue an interrupted build.")] = False,
) -> None:
    """Write a model's experts to a store; started again after an interruption, it goes on where it was."""
    if not model.is_dir():
        raise UsageError(f"--model: expected a directory, found none at {model}")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out: expected an existing folder, found none at {out.absolute().parent}")
    if quantize not in (None, "nf4", "int8"):
        raise UsageError(f"--quantize: expected nf4 or int8, got {quantize!r}")

    from ..offload.budget import format_bytes
    from ..offload.checkpoint import build_checkpoint_store
    from ..offload.store import discard_partial

    if restart:
        discard_partial(out)
    written = (0, 0)
    try:
        with progress_bar("writing experts") as step:

            def progress(done: int, total: int) -> None:
                nonlocal written
                written = (done, total)
                step(done, total)

            opened = build_checkpoint_store(model, out, quantize=quantize, pack=pack, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {written[0]} of {written[1]} experts are written; the same command goes on from there"
        ) from None
    with opened:
        layout = opened.layout
        typer.echo(
            f"{out}: {len(layout.blobs)} experts of {format_bytes(layout.blob_bytes)} in {len(layout.groups)} layers, "
            f"{format_bytes(layout.file_bytes)}{f', {quantize}' if quantize else ''}{', packed' if pack else ''}"
        )


def verify(path: StorePath) -> None:
    """Read every expert and check it."""
    from ..offload.budget import format_bytes
    from ..offload.store import ExpertStore

    with ExpertStore.open(path) as opened, progress_bar("checking experts") as step:
        opened.verify(step)
        layout = opened.layout
    typer.echo(f"{path}: {len(layout.blobs)} experts are as they were written ({format_bytes(layout.payload_bytes)})")


def info(path: StorePath) -> None:
    """Describe a store."""
    from ..offload.budget import format_bytes
    from ..offload.store import ExpertStore

    with ExpertStore.open(path) as opened:
        layout = opened.layout
        typer.echo(f"source: {layout.source or 'not said'}")
        typer.echo(f"experts: {len(layout.blobs)} of {format_bytes(layout.blob_bytes)}")
        typer.echo(f"quantization: {layout.quantization or 'none'}")
        if layout.packing:
            typer.echo(f"packing: {layout.packing}, {format_bytes(layout.stored_bytes)} an expert on disk")
        for spec in layout.tensors:
            typer.echo(f"  {spec.name}: {spec.dtype} {spec.shape}")
        typer.echo(f"read: {opened.file.mode}, by {opened.file.method}")


for _command in (build, verify, info):
    store.command()(reports_errors(_command))
