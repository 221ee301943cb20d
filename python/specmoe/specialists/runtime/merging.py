"""A specialist as an ordinary model, its adapter merged into the dequantized base: faster, but larger."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...lora.adapters import read_adapter
from ...lora.base import Base, load_base
from ...lora.merge import Fidelity, check_replaceable, merge
from ...training.data import encode_records
from ...training.files import replace_file
from ..bases import load_quantized
from ..corpora import SPECIALISTS, CorpusSettings, generate
from ..learning.scores import exact, rows_of
from .loaded import Loaded
from .members import COORDINATOR, FamilyError, members_of


@dataclass(frozen=True)
class MergeReport:
    """What merging costs and brings.

    Attributes:
        fidelity: of the written model against the dequantized base with the adapter beside it.
        exact_unmerged, exact_merged: share of test examples that are exactly right, on the base in NF4 with the
            adapter beside it, and by the written model.
        speedup: time of a forward of one short prompt unmerged, divided by that of the written model, measured in
            turns.
    """

    fidelity: Fidelity
    exact_unmerged: float
    exact_merged: float
    speedup: float


def merge_specialist(
    folder: Path, name: str, output: Path, examples: int = 100, dtype: str = "float32", seed: int = 0
) -> MergeReport:
    """Writes a specialist as an ordinary model, whole or not at all, and `OUTPUT.fidelity.json` beside it.

    Args:
        folder: the family's.
        name: the specialist.
        output: the folder to write; a merged model that is there is replaced.
        examples: of the test side, to compare on.
        dtype: of the written weights.
        seed: of the examples.

    Raises:
        FamilyError: there is no such specialist, or it has no adapter.
        FileExistsError: the folder holds something else than a merged model.
    """
    check_replaceable(output)
    members = members_of(folder)
    if name not in members or members[name].adapter is None:
        raise FamilyError(f"merge: expected a specialist with an adapter among {', '.join(members)}, got {name}")
    place = members[name].adapter
    assert place is not None
    corpus = name if name in SPECIALISTS else COORDINATOR
    tested = generate(corpus, "test", CorpusSettings(test_size=examples, seed=seed))
    quantized = load_quantized(members[name].base)
    loaded = Loaded(quantized)
    loaded.change(add=[read_adapter(place, name, quantized)])
    rows = rows_of(tested, quantized.tokenizer)
    with loaded.rows([name]):
        before = exact(quantized, rows)
    # The digest is that of the base in NF4, by which the adapter knows it.
    plain = dataclasses.replace(load_base(members[name].base), digest=quantized.digest)
    encoded = encode_records(tested, plain.tokenizer, 1 << 20)
    fidelity = merge(plain, {name: place}, output, {name: encoded}, dtype=getattr(torch, dtype))
    merged = load_base(output)
    prompt = rows[0]["input_ids"]
    with loaded.rows([name]):
        speedup = _ratio(lambda: _forward(quantized, prompt), lambda: _forward(merged, prompt))
    after = exact(merged, rows)
    report = MergeReport(fidelity, sum(before) / len(before), sum(after) / len(after), speedup)
    told = json.dumps(dataclasses.asdict(report), indent=1)
    replace_file(output.with_name(f"{output.name}.fidelity.json"), lambda partial: partial.write_text(told))
    return report


@torch.no_grad()
def _forward(base: Base, ids: list[int]) -> Any:
    return base.model(torch.tensor([ids], device=base.model.device), use_cache=False)


def _ratio(first: Callable[[], Any], second: Callable[[], Any], times: int = 9) -> float:
    """Returns the median of the ratio of two times, each pair measured one after the other."""
    ratios = []
    for _ in range(times):
        started = time.perf_counter()
        first()
        between = time.perf_counter()
        second()
        ratios.append((between - started) / max(1e-9, time.perf_counter() - between))
    return sorted(ratios)[times // 2]
