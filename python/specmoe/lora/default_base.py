"""The base that needs no network: a small Gemma 3, pretrained once on the records of all domains and then cached."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from ..training.checkpoints import copy_files, publish, verify
from ..training.data import DOMAINS, Record, encode_records, load_domain, split, train_tokenizer
from ..training.errors import CheckpointError
from ..training.tuning import TuneSettings, tune
from .base import Base, load_base


@dataclass(frozen=True)
class BaseSettings:
    """The default base.

    Args:
        hidden_size, intermediate_size, layers, heads, head_size: of the transformer; the heads share one key and value.
        vocab_size: tokens of the byte-level vocabulary.
        context: the longest text, in tokens.
        steps, batch_size, shards, learning_rate, max_length: of its pretraining; `max_length` in tokens.
        precision: "float32", or "bfloat16" for autocast.
        seed: of weights, data and order.
    """

    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 4
    heads: int = 4
    head_size: int = 64
    vocab_size: int = 4096
    context: int = 1024
    steps: int = 450
    batch_size: int = 32
    shards: int = 2
    learning_rate: float = 2e-3
    max_length: int = 256
    precision: str = "bfloat16"
    seed: int = 0


def default_base(settings: BaseSettings | None = None, progress: bool | None = None) -> Base:
    """Returns the default base; the first call pretrains it, going on where an earlier one was interrupted.

    It learns whole texts, prompts included, of the training sides of the five domains.

    Args:
        settings: None for the defaults.
        progress: show a bar; None shows one where standard error is a terminal.
    """
    settings = settings or BaseSettings()
    records = {domain: split(load_domain(domain, seed=settings.seed), seed=settings.seed) for domain in DOMAINS}
    train = [record for domain in DOMAINS for record in records[domain]["train"]]
    folder = _cache() / f"lora-base-{_key(settings, train)}"
    try:
        verify(folder)
    except CheckpointError:
        validation = [record for domain in DOMAINS for record in records[domain]["validation"][:40]]
        _pretrain(folder, train, validation, settings, progress)
    return load_base(folder)


def _pretrain(
    folder: Path, train: list[Record], validation: list[Record], settings: BaseSettings, progress: bool | None
) -> None:
    run = folder.with_name(f"{folder.name}.run")
    tokenizer = train_tokenizer(train, settings.vocab_size, settings.context)
    tuning = TuneSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        shards=settings.shards,
        learning_rate=settings.learning_rate,
        eval_every=max(1, settings.steps // 4),
        save_every=max(1, settings.steps // 10),
        precision=settings.precision,
        seed=settings.seed,
    )
    rows = encode_records(train, tokenizer, settings.max_length)
    # A base is no assistant yet: it learns prompts as well as completions.
    rows = rows.remove_columns("labels").add_column("labels", rows["input_ids"])
    held_out = encode_records(validation, tokenizer, settings.max_length)
    model = untrained(settings)
    tuned = tune(model, tokenizer, rows, held_out, run, tuning, resume=True, title="base", progress=progress)

    def copy(target: Path) -> None:
        copy_files(tuned.model_dir, target)
        shutil.copyfile(run / "history.jsonl", target / "history.jsonl")

    publish(folder.parent, folder.name, copy)
    shutil.rmtree(run)


def untrained(settings: BaseSettings) -> Any:
    """Returns the model before its pretraining."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=1,
        head_dim=settings.head_size,
        query_pre_attn_scalar=settings.head_size,
        max_position_embeddings=settings.context,
        sliding_window=256,
        # `train_tokenizer` puts the padding first and the end of a turn second.
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Gemma3ForCausalLM(config)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specmoe"


def _key(settings: BaseSettings, records: list[Record]) -> str:
    digest = xxhash.xxh64(json.dumps(dataclasses.asdict(settings)).encode())
    for record in records:
        digest.update(repr((record.prompt, record.completion, record.history)).encode())
    return digest.hexdigest()
