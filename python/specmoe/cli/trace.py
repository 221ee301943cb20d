"""`specmoe trace`: record, look at, split and download routing traces."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError, reports_errors
from .progress import progress_bar

trace = typer.Typer(name="trace", help="Record, look at, split and download routing traces.", no_args_is_help=True)


@trace.command()
@reports_errors
def record(
    model: Annotated[str, typer.Argument(help="Directory or hub name of a Mixture-of-Experts model.")],
    text: Annotated[Path, typer.Option(help="Prompts: a .txt file, or .jsonl with a column of text.")],
    output: Annotated[Path, typer.Option(help="The trace file, .npz.")],
    column: Annotated[str, typer.Option(help="Column of a .jsonl file.")] = "question",
    prompts: Annotated[int, typer.Option(min=1, help="At most so many prompts.")] = 100,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a prompt at most; a .txt file is cut into them.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=0, help="Tokens to generate after each prompt.")] = 0,
    hidden: Annotated[bool, typer.Option("--hidden", help="Also the residual streams, for the next gate.")] = False,
    part: Annotated[str | None, typer.Option(help="encoder or decoder, where a model has both.")] = None,
) -> None:
    """Run a model over prompts and record which experts each token used."""
    if not text.is_file():
        raise UsageError(f"--text: expected a file, found none at {text}")
    if output.suffix != ".npz" or not output.absolute().parent.is_dir():
        raise UsageError(f"--output: expected a .npz file in an existing folder, got {output}")
    import torch

    import specmoe.transformer  # noqa: F401  (registers the architecture)

    from ..speculation.traces import record_trace, save_routes

    network, tokenizer = load_model(model)
    rows = _prompts(tokenizer, text, column, prompts, length)
    done = count(1)
    with torch.no_grad(), progress_bar("sequences") as show:
        recorded = record_trace(
            network, rows, new_tokens=new_tokens, hidden=hidden, part=part,
            progress=lambda tokens: show(next(done), len(rows)),
        )  # fmt: skip
    save_routes(recorded, output)
    N, L, K = recorded.experts.shape
    typer.echo(f"{output}: {len(recorded)} sequences, {N} tokens, {L} layers, {K} of {recorded.num_experts} experts")


@trace.command()
@reports_errors
def info(file: Annotated[Path, typer.Argument(help="A trace, .npz or .csv.")]) -> None:
    """Say what a trace holds and how much one choice of experts tells about the next."""
    from ..speculation.traces import load_routes
    from ..speculation.traces.statistics import describe

    d = describe(load_routes(file))
    chance = d.top_k / d.experts
    typer.echo(f"{d.sequences} sequences of {d.shortest} to {d.longest} tokens (median {d.median}), {d.tokens} in all")
    typer.echo(f"{d.layers} layers, {d.top_k} of {d.experts} experts; beside them: {', '.join(d.has) or 'nothing'}")
    typer.echo(f"layer  same expert as the token before (chance {chance:.1%})  evenness of use")
    for layer, (same, even) in enumerate(zip(d.repeated, d.entropy, strict=True)):
        typer.echo(f"{layer:5d}  {same:6.1%}  {even:.3f}")
    typer.echo(f" mean  {d.repeated.mean():6.1%}  {d.entropy.mean():.3f}")


@trace.command()
@reports_errors
def split(
    file: Annotated[Path, typer.Argument(help="A trace, .npz or .csv.")],
    held_out: Annotated[float, typer.Option(help="Share of the prompts to hold out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder. Default: the trace's.", show_default=False)] = None,
) -> None:
    """Part a trace by prompt into NAME.train.npz and NAME.test.npz."""
    from ..speculation.traces import load_routes, save_routes

    kept, held = load_routes(file).split(held_out, seed)
    folder = file.parent if output is None else output
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", kept), ("test", held)):
        path = folder / f"{file.stem}.{name}.npz"
        save_routes(part, path)
        typer.echo(f"{path}: {len(part)} sequences, {len(part.experts)} tokens")


@trace.command()
@reports_errors
def fetch(
    output: Annotated[Path, typer.Option(help="The trace file, .npz.")] = Path("gptoss20b_routes.npz"),
    datasets: Annotated[
        list[str] | None, typer.Option("--dataset", help="Only this data set; may be repeated.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many files.", show_default=False)] = None,
    cache: Annotated[Path, typer.Option(help="Folder for the downloads.")] = Path("gptoss20b_examples"),
    source: Annotated[str | None, typer.Option(help="Another address of the same files.", show_default=False)] = None,
) -> None:
    """Download the public routes of GPT-OSS-20B (Apache-2.0, about 2 MB of JSON for each prompt)."""
    from ..speculation.traces import save_routes
    from ..speculation.traces.fetch import SOURCE, fetch_routes

    with progress_bar("files") as show:
        fetched = fetch_routes(cache, source=source or SOURCE, datasets=datasets or None, limit=limit, progress=show)
    save_routes(fetched, output)
    typer.echo(f"{output}: {len(fetched)} sequences, {len(fetched.experts)} tokens")


def load_model(name: str) -> tuple[Any, Any]:
    """Return a model, ready to run, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return kind.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise UsageError(f"model: {name}: {error}") from error


def _prompts(tokenizer: Any, file: Path, column: str, count: int, length: int) -> list[Any]:
    """Return token ids (n,) of at most `count` prompts."""
    import json

    def ids(text: str) -> Any:
        return tokenizer(text, return_tensors="pt", return_token_type_ids=False).input_ids[0]

    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()][:count]
        if absent := [row for row in rows if column not in row]:
            raise UsageError(f"--column: expected one of {sorted(absent[0])}, got {column}")
        found = [ids(row[column])[:length] for row in rows]
    else:
        # A character is at most one token in all but exotic text: no more of it is needed.
        whole = ids(file.read_text(encoding="utf-8")[: 16 * count * length])
        found = list(whole[: count * length].split(length))
    return [row for row in found if len(row) > 1]
