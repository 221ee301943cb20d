"""Training of one adapter: `train_adapter("math", base, Path("runs/lora/math"))`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..training.files import replace_file
from ..training.finished import finished_report
from ..training.tuning import tune
from .adapters import new_adapter
from .base import TARGETS, Base
from .domains import domain_sides, encoded
from .settings import AdapterSettings

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class AdapterReport:
    """What a finished run has come to.

    Attributes:
        domain: whose adapter it is.
        model_dir: where the adapter is, in PEFT's format.
        records, steps, epochs: what it was trained on.
        validation_loss: of the best step, nats per labelled token.
        parameters, bytes: values in the adapter, and the size of its file.
        tokens_per_second: in training, the mean of the run.
        peak_bytes: the largest resident memory of the process so far, base included.
        seconds, cpu_seconds: of the last call, wall clock and processor time.
    """

    domain: str
    model_dir: Path
    records: int
    steps: int
    epochs: float
    validation_loss: float
    parameters: int
    bytes: int
    tokens_per_second: float
    peak_bytes: int
    seconds: float
    cpu_seconds: float


def train_adapter(
    domain: str,
    base: Base,
    output: Path,
    settings: AdapterSettings | None = None,
    *,
    resume: bool = False,
    progress: bool | None = None,
) -> AdapterReport:
    """Trains the adapter of a domain; the base is left as it was.

    The output directory receives what `tune` writes, and `report.json` when the run is done. A resumed run that is done
    is not trained again.

    Args:
        domain: one of `DOMAINS`, `MIXED`, or a name with a source in the settings.
        base: the frozen base.
        output: the run's directory.
        settings: None for the defaults.
        resume: go on from the last checkpoint in `output`; without one, start.
        progress: show a bar; None shows one where standard error is a terminal.

    Raises:
        DataError: the domain has no usable records.
        CheckpointError, FileExistsError, FloatingPointError, TrainingInterrupted: see `tune`.
    """
    settings = settings or AdapterSettings()
    identity = {"domain": domain, "base": base.digest, "settings": dataclasses.asdict(settings)}
    if resume and (done := finished_report(output / REPORT_FILE, identity)):
        return AdapterReport(**done)
    started, cpu = time.perf_counter(), time.process_time()
    train, validation = encoded(domain_sides(domain, settings.sources, settings.seed), base.tokenizer, settings)
    model = new_adapter(base, settings.rank, settings.factor, settings.dropout, settings.seed, TARGETS)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        title = f"{domain}: LoRA of rank {settings.rank}"
        tuning = settings.tuning(len(train))
        result = tune(
            model, base.tokenizer, train, validation, output, tuning, resume=resume, title=title, progress=progress,
            more=settings.over(base.digest),
        )  # fmt: skip
    finally:
        model.unload()
        base.model.eval().requires_grad_(False)
    report = AdapterReport(
        domain=domain,
        model_dir=result.model_dir,
        records=len(train),
        steps=result.steps,
        epochs=settings.epochs,
        validation_loss=result.validation_loss,
        parameters=parameters,
        bytes=(result.model_dir / "adapter_model.safetensors").stat().st_size,
        tokens_per_second=_speed(output),
        peak_bytes=peak_memory(),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu,
    )
    told = {**dataclasses.asdict(report), "model_dir": result.model_dir.name, "identity": identity}
    replace_file(output / REPORT_FILE, lambda partial: partial.write_text(json.dumps(told, indent=1)))
    return report


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _speed(output: Path) -> float:
    lines = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return sum(speeds) / len(speeds)
