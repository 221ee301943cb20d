"""`specmoe specialists`: a coordinator and specialists for the HLX notations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import specialists_runtime
from .errors import UsageError, reports_errors

specialists = typer.Typer(
    name="specialists", help="A coordinator and specialists for the HLX notations.", no_args_is_help=True
)


FAMILY = Path("runs/specialists")
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Progress bar. Default: on a terminal.", show_default=False),
]


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


@specialists.command()
@reports_errors
def train(
    names: Annotated[
        list[str] | None, typer.Argument(help="coordinator, ascii, runic, gpu, or all.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="A folder or a hub name, such as Qwen/Qwen2.5-1.5B-Instruct. Default: a small one, pretrained once."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the family.")] = FAMILY,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is there.")] = False,
    examples: Annotated[int | None, typer.Option(min=1, help="Training examples of each.", show_default=False)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over them. Default: up to 50, and 1 on the default base.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, in place of the epochs.")] = None,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 for autocast.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    seed: Annotated[int, typer.Option()] = 0,
    progress: Progress = None,
) -> None:
    """Train specialists by QLoRA, one after the other; interrupted, the same command with --resume goes on."""
    chosen = _names(names)

    import dataclasses
    import warnings

    from ..specialists.family import DEFAULT
    from ..specialists.training import QLORA, offline, prepare_family, train_specialist
    from ..training import TrainingInterrupted

    options = {"examples": examples, "epochs": epochs, "steps": steps, "precision": precision, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        kind = _device(device)
        family = prepare_family(output, base, progress=progress)
        if kind == "cpu" and QLORA.optimizer.startswith("paged"):
            typer.echo(
                f"{QLORA.optimizer}: on a CPU the optimizer's states are not paged, they stay in memory", err=True
            )
            warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        for name in chosen:
            preset = offline(name) if family.base == DEFAULT else QLORA
            settings = dataclasses.replace(preset, **given)
            report = train_specialist(name, family, settings, resume=resume, device=kind, progress=progress)
            typer.echo(
                f"{name}: loss {report.training_loss:.4f} in training, {report.validation_loss:.4f} in validation, "
                f"after {report.steps} steps on {report.records} examples, {report.seconds:.0f} s "
                f"({report.cpu_seconds:.0f} s of processor time); {report.parameters:,} values, "
                f"{report.bytes / 2**20:.2f} MiB, at most {report.peak_bytes / 2**20:,.0f} MiB of memory; "
                f"{report.model_dir}"
            )
    except TrainingInterrupted as stop:
        again = "the same command" if resume else "the same command and --resume"
        raise KeyboardInterrupt(f"{stop}; continue with {again}") from None


@specialists.command()
@reports_errors
def test(
    family: Annotated[Path, typer.Option(help="Folder of the family.")] = FAMILY,
    output: Annotated[Path | None, typer.Option(help="Where the report goes. Default: the family's folder.")] = None,
    size: Annotated[int, typer.Option(min=4, help="Conversions in all; explanations come along.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Most prompts at once.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the cases.")] = 0,
    progress: Progress = None,
) -> None:
    """Test the specialists on held-out cases: the models alone, with verification, and the codec."""
    from ..specialists.evaluation import evaluate_family, write_report
    from ..specialists.evaluation.report import markdown

    found = evaluate_family(family, size, seed=seed, batch=batch, progress=progress)
    typer.echo(markdown(found))
    for path in write_report(found, output or family.expanduser()):
        typer.echo(str(path))


def _device(name: str) -> str:
    """Returns "cuda" or "cpu": bitsandbytes' 4 bits are for these."""
    from ..training.device import choose_device, usable_devices

    if name == "auto":
        return "cuda" if usable_devices()["cuda"] is None else "cpu"
    if name not in ("cuda", "cpu"):
        raise UsageError(f"device: expected auto, cuda or cpu, got {name!r}")
    return choose_device(name)


def _names(names: list[str] | None) -> list[str]:
    """Returns the specialists that are meant.

    Raises:
        UsageError: none, or an unknown one.
    """
    from ..specialists.corpora import SPECIALISTS

    known = ", ".join((*SPECIALISTS, "all"))
    if not names:
        raise UsageError(f"specialists: expected one or more of {known}, got none")
    for name in names:
        if name not in (*SPECIALISTS, "all"):
            raise UsageError(f"specialists: expected one or more of {known}, got {name!r}")
    return list(SPECIALISTS) if "all" in names else list(dict.fromkeys(names))


specialists_runtime.register(specialists)
