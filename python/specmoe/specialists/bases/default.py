"""The base that needs no network: a small Qwen2, pretrained once on the corpora of all specialists and then cached."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash

from ...training.checkpoints import copy_files, publish, verify
from ...training.data import encode_records
from ...training.errors import CheckpointError
from ...training.tuning import TuneSettings, tune
from ..corpora import CorpusSettings, Example, generate
from .tokenizer import VOCABULARY, byte_tokenizer

# Specialists are trained on other examples of the training side, and so is what validates the base.
_SEED, _VALIDATION_SEED = 1_000_000, 2_000_000
_VALIDATION = 200
_KNOWN_BY = 100


@dataclass(frozen=True)
class BaseSettings:
    """The default base.

    Args:
        hidden_size, intermediate_size, layers, heads: of the transformer.
        context: the longest text, in tokens.
        examples: of each specialist's training side.
        steps, batch_size, shards, learning_rate, weight_decay: of its pretraining.
        precision: "float32", or "bfloat16" for autocast.
        seed: of weights, data and order.
    """

    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 5
    heads: int = 4
    context: int = 512
    examples: Mapping[str, int] = field(
        default_factory=lambda: {"coordinator": 60_000, "ascii": 22_000, "runic": 22_000, "gpu": 16_000}
    )
    steps: int = 9_000
    batch_size: int = 32
    shards: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    precision: str = "bfloat16"
    seed: int = 0


def default_base(settings: BaseSettings | None = None, progress: bool | None = None) -> Path:
    """Returns the default base's folder; the first call pretrains it, going on where an earlier one was interrupted.

    Args:
        settings: None for the defaults.
        progress: show a bar; None shows one where standard error is a terminal.

    Returns:
        The folder in the cache, in full precision.

    Raises:
        TrainingInterrupted: Ctrl-C; the state is saved.
    """
    settings = settings or BaseSettings()
    folder = cache() / f"specialists-base-{_key(settings)}"
    try:
        verify(folder)
    except CheckpointError:
        _pretrain(folder, settings, progress)
    return folder


def cache() -> Path:
    """Returns the folder for what is made once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specmoe"


def _pretrain(folder: Path, settings: BaseSettings, progress: bool | None) -> None:
    run = folder.with_name(f"{folder.name}.run")
    tokenizer = byte_tokenizer(settings.context)
    tuning = TuneSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        shards=settings.shards,
        learning_rate=settings.learning_rate,
        warmup=0.03,
        weight_decay=settings.weight_decay,
        eval_every=max(1, settings.steps // 8),
        save_every=max(1, settings.steps // 20),
        log_every=max(1, min(100, settings.steps // 10)),
        precision=settings.precision,
        seed=settings.seed,
    )
    rows, held_out = (encode_records(side, tokenizer, settings.context) for side in _sides(settings))
    model = untrained(settings)
    tuned = tune(model, tokenizer, rows, held_out, run, tuning, resume=True, title="base", progress=progress)

    def copy(target: Path) -> None:
        copy_files(tuned.model_dir, target)
        for name in ("history.jsonl", "loss.png"):
            shutil.copyfile(run / name, target / name)

    publish(folder.parent, folder.name, copy)
    shutil.rmtree(run)


def untrained(settings: BaseSettings) -> Any:
    """Returns the model before its pretraining."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        # `train_tokenizer` puts the padding first and the end of a turn second.
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Qwen2ForCausalLM(config)


def _sides(settings: BaseSettings) -> tuple[list[Example], list[Example]]:
    """Returns the examples to learn and those that validate."""
    train = [e for name, size in settings.examples.items() for e in _drawn(name, size, _SEED + settings.seed)]
    known = {example.prompt for example in train}
    drawn = (e for name in settings.examples for e in _drawn(name, _VALIDATION, _VALIDATION_SEED + settings.seed))
    return train, [example for example in drawn if example.prompt not in known]


def _drawn(name: str, size: int, seed: int) -> list[Example]:
    return generate(name, "train", CorpusSettings(size=size, seed=seed))


def _key(settings: BaseSettings) -> str:
    """Returns what tells one base from another: its settings, and how the corpora and the tokenizer come out."""
    told = dataclasses.asdict(settings) | {"examples": dict(settings.examples)}
    digest = xxhash.xxh64(json.dumps(told, sort_keys=True).encode())
    for name in settings.examples:
        for example in _drawn(name, _KNOWN_BY, _SEED + settings.seed):
            digest.update(f"{example.prompt}\0{example.completion}\0".encode())
    digest.update(byte_tokenizer(settings.context).backend_tokenizer.to_str().encode())
    return digest.hexdigest()
