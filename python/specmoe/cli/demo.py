"""`specmoe demo`: what speculative prefetch does on this machine, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError

DEFAULT_SIZE = "2GiB"
DEFAULT_TOKENS = 96


def demo(
    replay: Annotated[
        bool, typer.Option("--replay", help="Drive random experts of a real model's size by recorded routes.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Text to continue. [default: three of its own]", show_default=False)
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=4, help="Tokens in a round. [default: 96; in a replay what time allows]", show_default=False),
    ] = None,
    memory: Annotated[
        str, typer.Option(help='Memory for experts: "64MiB", or a percentage of what all of them need.')
    ] = "40%",
    trace: Annotated[
        Path | None,
        typer.Option(help="Routes to replay, .npz. [default: the demo model's own]", show_default=False),
    ] = None,
    size: Annotated[str, typer.Option(help="Bytes of all experts of a replay.")] = DEFAULT_SIZE,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Leave the expert store in the cache folder.")] = True,
    output: Annotated[Path, typer.Option(help="The plot, a PNG.")] = Path("specmoe-demo.png"),
) -> None:
    """Run a model whose experts stay on disk: on demand, cached, and with speculative prefetch.

    The first run trains a small model, which takes about a minute. Nothing is downloaded.
    """
    _check(replay, prompt, trace, size, memory, output)
    try:
        if replay:
            from ..demo.replaying import demo_replaying

            demo_replaying(trace, size, memory, tokens, keep, output)
        else:
            from ..demo.generating import demo_generating

            demo_generating(prompt, tokens or DEFAULT_TOKENS, memory, keep, output)
    except OSError as error:
        raise UsageError(str(error)) from error


def _check(replay: bool, prompt: str | None, trace: Path | None, size: str, memory: str, output: Path) -> None:
    """Refuse what can be refused before anything slow begins."""
    from ..offload.budget import parse_bytes

    if replay and prompt is not None:
        raise UsageError("--prompt: expected without --replay, which generates no text")
    for name, given in (("--trace", trace is not None), ("--size", size != DEFAULT_SIZE)):
        if given and not replay:
            raise UsageError(f"{name}: expected together with --replay, got it alone")
    if trace is not None and not trace.is_file():
        raise UsageError(f"--trace: expected a file, found none at {trace}")
    if output.suffix.lower() != ".png" or not output.absolute().parent.is_dir():
        raise UsageError(f"--output: expected a .png file in an existing folder, got {output}")
    parse_bytes(memory, whole=1 << 40, argument="--memory")
    parse_bytes(size, whole=1 << 40, argument="--size")
