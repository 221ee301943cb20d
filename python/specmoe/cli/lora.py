"""`specmoe lora`: one frozen base, a LoRA adapter for each domain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError, reports_errors

lora = typer.Typer(help="LoRA experts: one frozen base, an adapter for each domain.", no_args_is_help=True)

BaseOption = Annotated[
    str | None,
    typer.Option(help="A folder or a hub name, such as google/gemma-3-270m. Default: a small one, made once."),
]
Adapters = Annotated[Path, typer.Option(help="The folder of the adapters' runs, or one adapter.")]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Progress bar. Default: on a terminal.", show_default=False),
]
Source = Annotated[
    list[str] | None,
    typer.Option(help="DOMAIN=FILE or DOMAIN=HUB_NAME[:CONFIG], in place of the domain's default; repeatable."),
]
RUNS = Path("runs/lora")


def train(
    domains: Annotated[list[str] | None, typer.Argument(help="Domains; `mixed` is all of them in one adapter.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All five domains.")] = False,
    base: BaseOption = None,
    output: Annotated[Path, typer.Option(help="Folder of the runs, one for each domain.")] = RUNS,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is there.")] = False,
    rank: Annotated[int, typer.Option(help="4 to 64.")] = 16,
    samples: Annotated[int, typer.Option(help="Records of a domain at most.")] = 2000,
    epochs: Annotated[float, typer.Option(help="Passes over them.")] = 3.0,
    batch_size: Annotated[int, typer.Option(help="Records in a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    max_length: Annotated[int, typer.Option(help="Longer records are left out, in tokens.")] = 256,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 for autocast.")] = "bfloat16",
    source: Source = None,
    seed: Annotated[int, typer.Option()] = 0,
    progress: Progress = None,
) -> None:
    """Train adapters, one after the other; interrupted, the same command with --resume goes on."""
    chosen = _domains(domains, every, source)

    from ..lora.settings import AdapterSettings
    from ..lora.train import train_adapter
    from ..training import TrainingInterrupted

    settings = AdapterSettings(
        rank=rank, samples=samples, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        max_length=max_length, precision=precision, seed=seed, sources=_sources(source),
    )  # fmt: skip
    with _goes_on("the same command" if resume else "the same command and --resume", TrainingInterrupted):
        opened = _base(base, progress)
        for domain in chosen:
            report = train_adapter(domain, opened, output / domain, settings, resume=resume, progress=progress)
            typer.echo(
                f"{domain}: validation loss {report.validation_loss:.4f} after {report.steps} steps on "
                f"{report.records} records, {report.tokens_per_second:,.0f} tokens/s, {report.seconds:.0f} s "
                f"({report.cpu_seconds:.0f} s of processor time); {report.parameters:,} values, "
                f"{report.bytes / 2**20:.2f} MiB, at most {report.peak_bytes / 2**20:,.0f} MiB of memory; "
                f"{report.model_dir}"
            )


def evaluate(
    adapters: Adapters = RUNS,
    base: BaseOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the JSON and the PNG go. Default: the adapters' folder.")
    ] = None,
    records: Annotated[int, typer.Option(min=1, help="Held-out records of each domain.")] = 200,
    answers: Annotated[int, typer.Option(min=0, help="Generated answers to check in each domain that can.")] = 96,
    max_length: Annotated[int, typer.Option(help="Longer records are left out, in tokens.")] = 256,
    router: Annotated[bool, typer.Option("--router/--no-router", help="Also evaluate the routed system.")] = True,
    source: Source = None,
    seed: Annotated[int, typer.Option(help="The one that the adapters were trained with.")] = 0,
) -> None:
    """Evaluate every adapter on every domain, held out; and the router's choice among them."""
    from ..lora.domains import domain_sides
    from ..lora.evaluate import evaluate as run
    from ..lora.system import LoraSystem, find_adapters
    from ..lora.table import table
    from ..routing import default_router
    from ..training.data import DOMAINS
    from ..training.heat_map import plot_heat_map

    found, sources = find_adapters(adapters), _sources(source)
    opened = _base(base, None)
    held_out = {
        domain: domain_sides(domain, sources, seed)["test"][:records]
        for domain in found
        if domain in DOMAINS or domain in sources
    }
    if not held_out:
        raise UsageError(f"--adapters: expected an adapter of a known domain, or its --source, got {', '.join(found)}")
    with LoraSystem(opened, found, default_router() if router else None) as system:
        result = run(system, held_out, max_length, answers)
    typer.echo(table(result))
    for domain, shares in result.accuracy.items():
        told = ", ".join(f"{system} {share:.1%}" for system, share in shares.items())
        typer.echo(f"right answers, {domain}, {result.answers[domain]} asked: {told}")
    if "routed" in result.losses:
        told = ", ".join(f"{domain} {share:.1%}" for domain, share in result.routed_right.items())
        typer.echo(f"routed: {result.routed_excess():+.2%} loss against the right expert; routed rightly: {told}")
    if "mixed" in result.losses:
        told = ", ".join(f"{domain} {margin:.3f}" for domain, margin in result.margins().items())
        typer.echo(f"under the adapter of all domains, nats: {told}")
    folder = output or adapters
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / "evaluation.json")
    square = {name: {domain: result.losses[name][domain] for domain in result.experts} for name in result.experts}
    title = "held-out loss, nats per token"
    plot_heat_map(square, folder / "evaluation.png", title, rows="expert", columns="domain of the held-out records")
    typer.echo(f"written: {folder / 'evaluation.json'}, {folder / 'evaluation.png'}")


def generate(
    prompts: Annotated[list[str], typer.Argument(help="What is said to it; several make one batch.")],
    adapters: Adapters = RUNS,
    base: BaseOption = None,
    adapter: Annotated[
        str, typer.Option(help="auto (the router), top2, arrow (each token chooses), base, or an adapter's name.")
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16; auto: bfloat16 where this machine multiplies in it.")
    ] = "auto",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Answer prompts, each with the adapter that suits it, in one batch."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--dtype: expected auto, float32 or bfloat16, got {dtype}")
    import torch
    from transformers import set_seed

    from ..lora.base import fastest_dtype
    from ..lora.system import LoraSystem, find_adapters
    from ..routing import default_router

    computes_in = fastest_dtype() if dtype == "auto" else getattr(torch, dtype)
    found = find_adapters(adapters)
    router = default_router() if adapter in ("auto", "top2") else None
    set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    with LoraSystem(_base(base, None).to(computes_in), found, router) as system:
        choices = [None] * len(prompts) if adapter == "arrow" else system.choices(prompts, adapter)
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        for choice, text in zip(choices, system.answer(turns, adapter, max_new_tokens, **sampling), strict=True):
            if not isinstance(choice, str | None):
                choice = " and ".join(f"{name} {weight:.0%}" for name, weight in choice)
            typer.echo(f"[{'arrow' if adapter == 'arrow' else choice or 'base'}] {text}")


def merge(
    names: Annotated[list[str], typer.Argument(help="Adapters to merge into the base.")],
    output: Annotated[Path, typer.Option(help="The folder to write, an ordinary model.")],
    adapters: Adapters = RUNS,
    base: BaseOption = None,
    method: Annotated[
        str, typer.Option(help="linear, ties, dare_linear, dare_ties, svd or cat, for several.")
    ] = "linear",
    weights: Annotated[str | None, typer.Option(help="Of the adapters, such as 0.7,0.3. Default: equal.")] = None,
    density: Annotated[float, typer.Option(help="Share of the values that TIES and DARE keep.")] = 0.5,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: the base's.")] = None,
    records: Annotated[int, typer.Option(min=1, help="Held-out records of each domain for the comparison.")] = 50,
    source: Source = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Merge adapters into the base, and say how far the result is from base and adapters side by side."""
    import dataclasses
    import json

    import torch

    from ..lora.domains import domain_sides
    from ..lora.merge import merge as run
    from ..lora.system import find_adapters
    from ..training.data import DOMAINS, encode_records

    found, sources = find_adapters(adapters), _sources(source)
    if unknown := [name for name in names if name not in found]:
        raise UsageError(f"expected adapters among {', '.join(found)}, got {', '.join(unknown)}")
    if dtype not in (None, "float32", "bfloat16"):
        raise UsageError(f"--dtype: expected float32 or bfloat16, got {dtype}")
    opened = _base(base, None)
    domains = [name for name in (*DOMAINS, *sources) if name in found]
    rows = {
        name: encode_records(domain_sides(name, sources, seed)["test"][:records], opened.tokenizer, 256)
        for name in dict.fromkeys(domains)
    }
    given = None if weights is None else [float(weight) for weight in weights.split(",")]
    fidelity = run(
        opened, {name: found[name] for name in names}, output, rows, weights=given, method=method, density=density,
        dtype=getattr(torch, dtype) if dtype else None, seed=seed,
    )  # fmt: skip
    typer.echo(
        f"{output}: logits differ by {fidelity.mean:.2g} on average and {fidelity.largest:.2g} at most; "
        f"the likeliest token agrees in {fidelity.agreement:.2%}"
    )
    for domain, loss in fidelity.loss_merged.items():
        own = f", {fidelity.loss_own[domain]:.4f} with its own adapter" if domain in fidelity.loss_own else ""
        typer.echo(f"  {domain}: loss {fidelity.loss_unmerged[domain]:.4f} unmerged, {loss:.4f} merged{own}")
    (output.parent / f"{output.name}.fidelity.json").write_text(json.dumps(dataclasses.asdict(fidelity), indent=1))


def loop(
    domain: Annotated[str, typer.Argument(help="The domain.")],
    base: BaseOption = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder. Default: runs/lora-loop/<domain>.", show_default=False)
    ] = None,
    start: Annotated[Path | None, typer.Option(help="An adapter to begin with.", show_default=False)] = None,
    patience: Annotated[int, typer.Option(min=1, help="Rounds without a better adapter before it stops.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="The most rounds.")] = 100,
    rank: Annotated[int, typer.Option(help="4 to 64.")] = 16,
    samples: Annotated[int, typer.Option(help="Records of a round.")] = 2000,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the first round.")] = 1e-3,
    source: Source = None,
    seed: Annotated[int, typer.Option()] = 0,
    progress: Progress = None,
) -> None:
    """Train on and on, keep the best, stop on a plateau; the same command goes on after an interruption."""
    from ..lora.loop import train_in_rounds
    from ..lora.settings import AdapterSettings
    from ..training import TrainingInterrupted

    settings = AdapterSettings(
        rank=rank, samples=samples, epochs=1, learning_rate=learning_rate, seed=seed, sources=_sources(source)
    )
    folder = output or Path("runs/lora-loop") / domain
    with _goes_on("the same command", TrainingInterrupted):
        result = train_in_rounds(
            domain, _base(base, progress), folder, settings, patience=patience, rounds=rounds, start=start,
            progress=progress,
        )  # fmt: skip
    why = "a plateau" if result.plateau else f"{len(result.losses)} rounds"
    typer.echo(f"{domain}: validation loss {result.validation_loss:.4f} after {why}; {result.model_dir}")


def _base(source: str | None, progress: bool | None) -> Any:
    from ..lora.base import load_base
    from ..lora.default_base import default_base

    return default_base(progress=progress) if source is None else load_base(source)


def _domains(given: list[str] | None, every: bool, source: list[str] | None) -> list[str]:
    from ..lora.settings import DOMAINS, MIXED

    if bool(given) == every:
        raise UsageError("expected domains, or --all")
    known = (*DOMAINS, MIXED, *_sources(source))
    if unknown := [name for name in given or () if name not in known]:
        raise UsageError(f"expected domains among {', '.join(known)}, got {', '.join(unknown)}")
    return list(DOMAINS) if every else list(given or ())


def _sources(given: list[str] | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given or ()]
    if wrong := [name for name, _, value in pairs if not name or not value]:
        raise UsageError(f"--source: expected DOMAIN=FILE or DOMAIN=HUB_NAME, got {wrong[0]}")
    return {name: value for name, _, value in pairs}


@contextmanager
def _goes_on(command: str, interrupted: type[BaseException]) -> Iterator[None]:
    """Adds to an interruption what goes on from it."""
    try:
        yield
    except interrupted as stop:
        raise KeyboardInterrupt(f"{stop}; continue with {command}") from None


for _name, _command in (("train", train), ("eval", evaluate), ("generate", generate), ("merge", merge), ("loop", loop)):
    lora.command(_name)(reports_errors(_command))
