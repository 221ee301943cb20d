"""`specmoe train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.settings import PRESETS, SETTINGS_FILE, TrainSettings, preset
from .errors import UsageError


def train(
    dataset: Annotated[
        str | None,
        typer.Option(help="pydoc, tinyshakespeare, a text file, or a hub name. Default: pydoc.", show_default=False),
    ] = None,
    preset_name: Annotated[
        str | None,
        typer.Option("--preset", help=f"{' or '.join(sorted(PRESETS))}. Default: cpu.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory of the run. Default: runs/<dataset>-<preset>.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output directory.")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, mps, directml or cpu.")] = "auto",
    seed: Annotated[int | None, typer.Option(show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default=False)] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of linear warmup.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows in a batch.", show_default=False)] = None,
    block_size: Annotated[int | None, typer.Option(help="Context in tokens.", show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default=False)] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Width of the model.", show_default=False)] = None,
    num_layers: Annotated[int | None, typer.Option("--layers", help="Blocks.", show_default=False)] = None,
    num_heads: Annotated[int | None, typer.Option("--heads", help="Attention heads.", show_default=False)] = None,
    num_experts: Annotated[int | None, typer.Option("--experts", help="Experts.", show_default=False)] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token.", show_default=False)] = None,
    expert_size: Annotated[int | None, typer.Option(help="Inner width of an expert.", show_default=False)] = None,
    activation: Annotated[str | None, typer.Option(help="Activation of the experts.", show_default=False)] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout probability.", show_default=False)] = None,
    load_balance_weight: Annotated[
        float | None, typer.Option(help="Weight of the load-balance loss.", show_default=False)
    ] = None,
    z_loss_weight: Annotated[float | None, typer.Option(help="Weight of the z-loss.", show_default=False)] = None,
    entropy_weight: Annotated[float | None, typer.Option(help="Weight of the bonus.", show_default=False)] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations.", show_default=False)] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default=False)] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="Newest checkpoints to keep, besides the best.", show_default=False)
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of a hub data set.", show_default=False)] = None,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="Progress bar. Default: on a terminal.", show_default=False),
    ] = None,
) -> None:
    """Train a Mixture-of-Experts transformer on characters."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    options = {name: given[name] for name in given if name not in ("preset_name", "output", "progress")}
    options["progress"] = progress
    settings = _settings(preset_name, output, options)

    from ..training import TrainingInterrupted
    from ..training.run import train as run

    try:
        result = run(settings)
    except TrainingInterrupted as stop:
        command = f"specmoe train --resume --output {settings.output_dir}"
        raise KeyboardInterrupt(f"{stop}; continue with: {command}") from None
    typer.echo(
        f"validation loss {result.validation_loss:.4f} nats, perplexity {result.perplexity:.3f} "
        f"(step {result.best_step} of {result.steps}) in {result.seconds:.0f} s on {result.device}; "
        f"model in {result.model_dir}"
    )


def _settings(preset_name: str | None, output: Path | None, options: dict[str, Any]) -> TrainSettings:
    """Returns the settings that the options ask for."""
    if options["resume"]:
        if output is None:
            raise UsageError("--resume: expected --output to name the run's directory, got none")
        if preset_name is not None:
            raise UsageError("--resume: expected no --preset, since a run keeps its settings; got --preset")
        return TrainSettings.load(output / SETTINGS_FILE, output_dir=output, **options)
    name = preset_name or "cpu"
    data = Path(options.get("dataset", "pydoc")).stem
    return preset(name, output_dir=output or Path("runs") / f"{data}-{name}", **options)
