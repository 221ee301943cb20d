"""`specmoe predict`: train predictors of expert use and measure what they are worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError, reports_errors

predict = typer.Typer(name="predict", help="Train and evaluate predictors of expert use.", no_args_is_help=True)
HeldOut = Annotated[float, typer.Option(help="Share of the prompts that is held out, the same for both commands.")]
Seed = Annotated[int, typer.Option(help="Seed of the drawing of prompts.")]


@predict.command()
@reports_errors
def train(
    trace: Annotated[Path, typer.Argument(help="Routes, .npz or .csv.")],
    output: Annotated[Path, typer.Option(help="The trained predictor: .npz for fused, .pt for the others.")],
    kind: Annotated[
        str, typer.Option(help="fused, or baseline, enhanced, improved, extended, multi-scale, augmented, ensemble.")
    ] = "fused",
    preset: Annotated[str, typer.Option(help="cpu: at most ten minutes; full: the whole schedule.")] = "cpu",
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from --output (not for fused).")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the fused one.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the others.", show_default=False)] = None,
    signals: Annotated[
        str | None, typer.Option(help="Only these of the fused one's signals, with commas.", show_default=False)
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="Earlier layers that `links` sees; 0 for all.")] = 0,
    width: Annotated[int | None, typer.Option(min=8, help="Of the fused one's stream.", show_default=False)] = None,
) -> None:
    """Train a predictor on all prompts but the held-out ones."""
    from ..speculation.learned import CONFIGURATIONS

    if kind != "fused" and kind not in CONFIGURATIONS:
        raise UsageError(f"--kind: expected fused or one of {', '.join(CONFIGURATIONS)}, got {kind}")
    wanted = ".npz" if kind == "fused" else ".pt"
    if output.suffix != wanted or not output.absolute().parent.is_dir():
        raise UsageError(f"--output: expected a {wanted} file in an existing folder, got {output}")
    from ..speculation.traces import load_routes

    kept, _ = load_routes(trace).split(held_out, seed)
    begin = time.perf_counter()
    if kind == "fused":
        if resume:
            raise UsageError("--resume: expected with another --kind: the fused one trains in minutes")
        given: dict[str, Any] = {"epochs": epochs, "width": width, "hidden": width, "context": context}
        if signals is not None:
            given["signals"] = tuple(signals.split(","))
        parameters = _train_fused(kept, {n: v for n, v in given.items() if v is not None}, output)
    else:
        parameters = _train_learned(kept, kind, preset, steps, output, resume)
    typer.echo(f"{output}: {kind}, {parameters:,} parameters, {time.perf_counter() - begin:.0f} s")


def _train_fused(kept: Any, given: dict[str, Any], output: Path) -> int:
    from ..speculation.fused import FusedSettings, train_fused
    from ..speculation.fused.training import Progress

    def progress(p: Progress) -> None:
        loss = "" if math.isnan(p.loss) else f", epoch {p.epoch} of {p.epochs}, loss {p.loss:.4f}"
        typer.echo(f"{p.seconds:6.0f} s  {p.stage}{loss}", err=True)

    weights = train_fused(kept, FusedSettings(**given), progress)
    weights.save(output)
    return weights.parameters


def _train_learned(kept: Any, kind: str, preset: str, steps: int | None, output: Path, resume: bool) -> int:
    from ..speculation.learned import configuration, train_learned

    settings = configuration(kind, preset)
    if steps is not None:
        settings = replace(settings, steps=steps)

    def progress(step: int, loss: float, seconds: float) -> None:
        typer.echo(f"{seconds:6.0f} s  step {step} of {settings.steps}, loss {loss:.4f}", err=True)

    run = train_learned(kept, settings, checkpoint=output, resume=resume, progress=progress)
    typer.echo(f"{run.steps} steps in {run.seconds:.0f} s of training")
    return run.parameters


@predict.command()
@reports_errors
def evaluate(
    trace: Annotated[Path, typer.Argument(help="Routes, .npz or .csv.")],
    output: Annotated[Path, typer.Option(help="Folder for table, JSON and plots.")],
    weights: Annotated[
        list[Path] | None, typer.Option("--weights", help="A trained predictor; may be repeated.", show_default=False)
    ] = None,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    prompts: Annotated[int, typer.Option(min=0, help="At most so many held-out prompts; 0 for all.")] = 0,
    slots: Annotated[str, typer.Option(help="Cache sizes a layer, with commas.")] = "8,12,16",
    ablate: Annotated[bool, typer.Option("--ablate", help="Also the fused one with each signal taken away.")] = False,
    layer_us: Annotated[
        float | None, typer.Option(help="Microseconds of a layer's compute, for the share.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The recorded model: also its next gate (a trace with --hidden).", show_default=False),
    ] = None,
) -> None:
    """Measure predictors on the held-out prompts: accuracy, calibration, what eviction gains, time."""
    sizes = _sizes(slots)
    for file in weights or []:
        if not file.is_file():
            raise UsageError(f"--weights: expected a file, found none at {file}")
    import numpy as np

    from ..speculation.evaluation.report import as_json, draw, table
    from ..speculation.traces import load_routes

    kept, test = load_routes(trace).split(held_out, seed)
    if prompts:
        test = test.take(np.arange(min(prompts, len(test))))
    if test.experts.shape[2] > min(sizes):
        raise UsageError(f"--slots: expected at least K={test.experts.shape[2]}, got {slots}")
    rows = []
    predictors = _predictors(kept, weights or [], ablate)
    if model is not None:
        predictors += _gated(model, kept, weights or [])
    for name, make in predictors:
        typer.echo(f"{name} ...", err=True)
        rows.append(make(name, test, sizes))
    output.mkdir(parents=True, exist_ok=True)
    text = table(rows, layer_us)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    (output / "figures.json").write_text(as_json(rows) + "\n", encoding="utf-8")
    draw(rows, test, output)
    typer.echo(f"{len(test)} held-out prompts, {len(test.experts)} tokens; layers 1 to {test.experts.shape[1] - 1}\n")
    typer.echo(text)


def _sizes(slots: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in slots.split(","))
    except ValueError:
        raise UsageError(f"--slots: expected numbers with commas, got {slots}") from None
    return sizes


Maker = Callable[[str, Any, tuple[int, ...]], Any]


def _predictors(kept: Any, files: list[Path], ablate: bool) -> list[tuple[str, Maker]]:
    """Return names and functions that make a row, in the order of the table."""
    from ..speculation import LinkCounts, MovingAverage, PreviousToken, StaticFrequency, TokenTable

    _, L, K = kept.experts.shape
    E = kept.num_experts
    makers: dict[str, Callable[[], Any]] = {
        "frequency": lambda: StaticFrequency.count(kept),
        "previous token": lambda: PreviousToken(L, E, K),
        "moving average": lambda: MovingAverage(L, E, K),
        "naive Bayes": lambda: LinkCounts(kept),
    }
    if kept.tokens is not None:
        makers["token table"] = lambda: TokenTable(kept)
    found: list[tuple[str, Maker]] = [(name, _asked(make)) for name, make in makers.items()]
    for file in files:
        found += _learned(file) if file.suffix == ".pt" else _fused(file, ablate)
    return found


def _asked(make: Callable[[], Any], parameters: int | None = None) -> Maker:
    """Return a function that asks a predictor token by token."""

    def row(name: str, test: Any, sizes: tuple[int, ...]) -> Any:
        from ..speculation.evaluation import replay
        from ..speculation.evaluation.report import row_of

        begin = time.perf_counter()
        predictor = make()
        seconds = None if parameters is not None else time.perf_counter() - begin
        said = replay(predictor, test, keep=True)
        return row_of(
            name, test, said.chances, heaviest=said.heaviest, keep=said.keep, slots=sizes, seconds=said.seconds,
            parameters=parameters, training_seconds=seconds,
        )  # fmt: skip

    return row


def _gated(name: str, kept: Any, files: list[Path]) -> list[tuple[str, Maker]]:
    """Return the next gate of a model, and its blends with the fused predictors and with the adaptive one."""
    import specmoe.transformer  # noqa: F401  (registers the architecture)

    from ..speculation import AdaptivePredictor
    from ..speculation.evaluation.gates import gated_predictors
    from ..speculation.fused import FusedPredictor, FusedWeights
    from .trace import load_model

    network, _ = load_model(name)
    _, L, K = kept.experts.shape
    trained: list[tuple[str, Callable[[], Any]]] = [
        (f"fused ({file.stem})", lambda file=file: FusedPredictor(FusedWeights.load(file)))  # type: ignore[misc]
        for file in files
        if file.suffix == ".npz"
    ]
    trained.append(("adaptive", lambda: AdaptivePredictor(L, kept.num_experts, K)))
    try:
        return [(title, _asked(make)) for title, make in gated_predictors(network, kept, trained).items()]
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error


def _fused(file: Path, ablate: bool) -> list[tuple[str, Maker]]:
    from ..speculation.fused import FusedPredictor, FusedWeights
    from ..speculation.fused.settings import SIGNALS

    w = FusedWeights.load(file)
    found = [(f"fused ({file.stem})", _asked(lambda: FusedPredictor(w), w.parameters))]
    if ablate:
        found.append(("fused, not adapting", _asked(lambda: FusedPredictor(w, adapt=0.0), w.parameters)))
        for signal in SIGNALS:
            less = w.without(signal)
            found.append((f"fused without {signal}", _asked(lambda less=less: FusedPredictor(less), w.parameters)))  # type: ignore[misc]
    return found


def _learned(file: Path) -> list[tuple[str, Maker]]:
    """Return the row of a network of the learned family, asked in batches: one by one would take hours."""
    from ..speculation.learned import chances_of, load_learned

    run = load_learned(file)

    def row(name: str, test: Any, sizes: tuple[int, ...]) -> Any:
        from ..speculation.evaluation.report import row_of

        return row_of(
            name, test, chances_of(run, test), slots=sizes, parameters=run.parameters, training_seconds=run.seconds
        )

    return [(f"{run.settings.name} ({run.steps} steps)", row)]
