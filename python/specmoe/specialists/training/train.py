"""Training of one specialist: a QLoRA adapter on the family's base."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lora.adapters import new_adapter
from ...lora.base import TARGETS, Base
from ...lora.train import peak_memory
from ...training.data import encode_records
from ...training.files import replace_file
from ...training.finished import finished_report
from ...training.tuning import tune
from ..bases import load_quantized
from ..corpora import CorpusSettings, Example, generate
from ..family import Family
from .fillers import with_fillers
from .settings import SpecialistSettings

REPORT_FILE = "report.json"
# Far from the seeds that users choose: validation examples are none of the training's.
_VALIDATION_SEED = 3_000_000


@dataclass(frozen=True)
class SpecialistReport:
    """What a finished run has come to.

    Attributes:
        name: the specialist.
        model_dir: where its adapter is, in PEFT's format.
        records, steps: what it was trained on.
        training_loss: mean of the last line of the history, nats per labelled token.
        validation_loss: of the best step.
        parameters, bytes: values in the adapter, and the size of its file.
        peak_bytes: the largest resident memory of the process so far, base included.
        seconds, cpu_seconds: of the last call, wall clock and processor time.
    """

    name: str
    model_dir: Path
    records: int
    steps: int
    training_loss: float
    validation_loss: float
    parameters: int
    bytes: int
    peak_bytes: int
    seconds: float
    cpu_seconds: float


def train_specialist(
    name: str,
    family: Family,
    settings: SpecialistSettings,
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: bool | None = None,
) -> SpecialistReport:
    """Trains the adapter of a specialist; the family's base stays as it is.

    The run's folder receives what `tune` writes, and `report.json` when the run is done. A resumed run that is done is
    not trained again.

    Args:
        name: one of `SPECIALISTS`.
        family: whose base is tuned.
        settings: the run.
        resume: go on from the last checkpoint; without one, start.
        device: torch's name of a device.
        progress: show a bar; None shows one where standard error is a terminal.

    Raises:
        ValueError: there is no such specialist.
        CheckpointError, FileExistsError, FloatingPointError, TrainingInterrupted: see `tune`.
    """
    output = family.run_folder(name)
    identity = {"name": name, "base": family.digest, "settings": dataclasses.asdict(settings)}
    if resume and (done := finished_report(output / REPORT_FILE, identity)):
        return SpecialistReport(**done)
    started, cpu = time.perf_counter(), time.process_time()
    train, validation = examples_of(name, settings)
    base = load_quantized(family.base_folder, device)
    rows, held_out = (encode_records(side, base.tokenizer, settings.max_length) for side in (train, validation))
    model = adapted(base, settings)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    title = f"{name}: QLoRA of rank {settings.rank}"
    result = tune(
        model, base.tokenizer, rows, held_out, output, settings.tuning(len(rows)), resume=resume, title=title,
        progress=progress, more={"base": family.digest, "alpha": settings.alpha, "dropout": settings.dropout},
    )  # fmt: skip
    report = SpecialistReport(
        name=name,
        model_dir=result.model_dir,
        records=len(rows),
        steps=result.steps,
        training_loss=_last_loss(output),
        validation_loss=result.validation_loss,
        parameters=parameters,
        bytes=(result.model_dir / "adapter_model.safetensors").stat().st_size,
        peak_bytes=peak_memory(),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu,
    )
    told = {**dataclasses.asdict(report), "model_dir": result.model_dir.name, "identity": identity}
    replace_file(output / REPORT_FILE, lambda partial: partial.write_text(json.dumps(told, indent=1)))
    return report


def adapted(base: Base, settings: SpecialistSettings) -> Any:
    """Returns a quantized base with a fresh adapter, ready for training; the base's layers are wrapped in place."""
    from peft import prepare_model_for_kbit_training

    # Not reentrant: the embedding's output needs no gradient for it.
    prepare_model_for_kbit_training(
        base.model,
        use_gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    return new_adapter(base, settings.rank, settings.alpha, settings.dropout, settings.seed, TARGETS)


def examples_of(name: str, settings: SpecialistSettings) -> tuple[list[Example], list[Example]]:
    """Returns the examples that a specialist is trained on, and those that choose its best checkpoint."""
    train = generate(name, "train", CorpusSettings(size=settings.examples, seed=settings.seed))
    known = {example.prompt for example in train}
    others = generate(name, "train", CorpusSettings(size=settings.validation, seed=_VALIDATION_SEED + settings.seed))
    validation = [example for example in others if example.prompt not in known]
    return with_fillers(train, settings.fillers, settings.seed), validation


def _last_loss(output: Path) -> float:
    lines = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return [line["cross_entropy"] for line in lines if "cross_entropy" in line][-1]
