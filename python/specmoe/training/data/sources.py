"""Where a domain's records come from: a file, a data set of the hub, or what needs neither."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .code_functions import read_functions
from .columns import records_of
from .dialogues import generate_conversation
from .knowledge_texts import read_docstrings, read_topics, read_wikitext
from .math_problems import generate_math, read_gsm8k
from .reasoning_problems import generate_reasoning
from .records import DOMAINS, Record, shuffled, unique

# How many records a generator makes; what repeats a prompt is dropped later.
GENERATED = 8_000
# Builders of `datasets` for what a file holds.
_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text", ".parquet": "parquet"}


def load_domain(domain: str, source: str | None = None, limit: int | None = None, seed: int = 0) -> list[Record]:
    """Returns the records of a domain, each prompt once, in an order drawn from the seed.

    Args:
        domain: one of `DOMAINS`; any name with a source of its own.
        source: a JSONL, CSV, Parquet or text file, or the name of a data set of the hub, as `name` or `name:config`.
            None takes what needs no network: GSM8K or WikiText where `MOE_DATA_DIR` has them, Python's own topics,
            docstrings and functions, and generated problems and dialogues.
        limit: at most so many records.
        seed: of the generated records and the order.

    Returns:
        The records.

    Raises:
        DataError: an unknown domain without a source, or a source that is missing, unreadable or empty.
    """
    if source is None:
        if domain not in DOMAINS:
            raise DataError(f"data: {domain}: expected one of {', '.join(DOMAINS)}, or a source for it")
        found: Iterator[Record] = _DEFAULTS[domain](seed)
    else:
        found = _given(domain, source)
    records = unique(found)
    if not records:
        raise DataError(f"data: {domain}: expected records from {source or 'its default'}, found none")
    return shuffled(records, limit, seed)


def _given(domain: str, source: str) -> Iterator[Record]:
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in _FILES:
            raise DataError(f"data: {path}: expected one of {', '.join(_FILES)}")
        if path.stat().st_size == 0:
            raise DataError(f"data: {path}: expected records, got an empty file")
        options: dict[str, Any] = {"sep": "\t"} if path.suffix == ".tsv" else {}
        rows = _load(source, _FILES[path.suffix], data_files=str(path), **options)
    elif path.suffix in _FILES or path.exists():
        raise DataError(f"data: {path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
    else:
        name, _, config = source.partition(":")
        rows = _load(source, name, *([config] if config else []))
    return records_of(rows, list(rows.column_names), domain, source)


def _load(source: str, *args: Any, **options: Any) -> Any:
    import datasets

    progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        sides = datasets.load_dataset(*args, **options)
        # UltraChat and UltraFeedback name the side after what it is for.
        name = next((side for side in ("train", "train_sft", "train_prefs") if side in sides), next(iter(sides)))
        return sides[name]
    except Exception as error:  # the library and the hub's client raise many unrelated types
        reason = error.__cause__ or error
        raise DataError(f"data: {source}: not loaded: {type(reason).__name__}: {reason}") from error
    finally:
        if progress:
            datasets.enable_progress_bars()


def _at_hand(name: str) -> Path | None:
    folder = os.environ.get("MOE_DATA_DIR")
    return path if folder and (path := Path(folder) / name).is_file() else None


def _math(seed: int) -> Iterator[Record]:
    if path := _at_hand("gsm8k_train.jsonl"):
        yield from read_gsm8k(path)
    yield from generate_math(GENERATED, seed)


def _knowledge(seed: int) -> Iterator[Record]:
    del seed
    yield from read_topics()
    yield from read_docstrings()
    for name in ("wikitext2_valid.txt", "wikitext2_test.txt"):
        if path := _at_hand(name):
            yield from read_wikitext(path)


_DEFAULTS: dict[str, Callable[[int], Iterator[Record]]] = {
    "math": _math,
    "reasoning": lambda seed: generate_reasoning(GENERATED, seed),
    "code": lambda seed: read_functions(),
    "conversation": lambda seed: generate_conversation(GENERATED, seed),
    "knowledge": _knowledge,
}
