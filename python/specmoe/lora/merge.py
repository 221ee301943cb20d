"""Adapters merged into the base, alone or several, and how far the result is from what it was merged from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..training.checkpoints import publish
from ..training.data.prepare import collate
from ..training.run_state import quiet_progress_bars
from ..training.tuning import labelled_loss
from .adapters import check_base
from .base import Base

# In a merged model: what it was made of, and that it may be replaced by another.
MERGED_FILE = "specmoe_merged.json"
METHODS = ("linear", "ties", "dare_linear", "dare_ties", "svd", "cat")
_MERGED = "merged"
# Records whose logits are compared.
_COMPARED = 16


@dataclass(frozen=True)
class Fidelity:
    """Merged against unmerged on the same records.

    Attributes:
        largest, mean: absolute difference of logits.
        agreement: share of the tokens for which both choose the same next token.
        loss_unmerged, loss_merged: of each domain, nats per labelled token.
        loss_own: of the domains whose own adapter is one of several merged ones, with that adapter alone.
    """

    largest: float
    mean: float
    agreement: float
    loss_unmerged: dict[str, float]
    loss_merged: dict[str, float]
    loss_own: dict[str, float]


def combine(
    base: Base,
    folders: Mapping[str, Path],
    weights: Sequence[float] | None = None,
    method: str = "linear",
    density: float = 0.5,
    seed: int = 0,
) -> PeftModel:
    """Returns PEFT's model over the base with one active adapter, made of one or several.

    Args:
        base: the base; its layers are wrapped in place.
        folders: where each adapter is, by name.
        weights: of the adapters, 1 / n each by default.
        method: one of `METHODS`; TIES and DARE keep `density` of the values.
        density: see there.
        seed: of the values that DARE drops.

    Raises:
        ValueError: no adapters, an unknown method, an adapter of another base, or ranks that the method cannot combine.
    """
    names = list(folders)
    if not names or method not in METHODS:
        raise ValueError(f"merge: expected adapters and a method of {', '.join(METHODS)}, got {names} and {method}")
    given = [1 / len(names)] * len(names) if weights is None else list(weights)
    if len(given) != len(names):
        raise ValueError(f"merge: weights: expected {len(names)}, got {len(given)}")
    for folder in folders.values():
        check_base(folder, base)
    # PEFT takes the first adapter as the model's own.
    model = PeftModel.from_pretrained(base.model, str(folders[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(folders[name]), adapter_name=name)
    if len(names) > 1:
        sparse = {"density": density} if method.startswith(("ties", "dare")) else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_weighted_adapter(names, given, _MERGED, combination_type=method, **sparse)
        model.set_adapter(_MERGED)
    return model.eval()


def check_replaceable(output: Path) -> None:
    """Checks that a merged model may be written to a folder: it is absent, empty, or holds a merged model alone.

    Raises:
        FileExistsError: something else is there.
    """
    if not output.exists():
        return
    there = list(output.iterdir()) if output.is_dir() else [output]
    merged = any(path.name == MERGED_FILE for path in there) and not any(path.is_dir() for path in there)
    if there and not merged:
        raise FileExistsError(f"merge: {output} exists and is no merged model: remove it or choose another folder")


def merge(
    base: Base,
    folders: Mapping[str, Path],
    output: Path,
    rows: Mapping[str, Any],
    *,
    weights: Sequence[float] | None = None,
    method: str = "linear",
    density: float = 0.5,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Fidelity:
    """Writes the base with adapters merged into it as an ordinary model, whole or not at all.

    Args:
        base: the base, not quantized; it is changed, so load it anew for other uses.
        folders, weights, method, density, seed: see `combine`.
        output: the folder to write; a merged model that is there is replaced.
        rows: for each domain records as `encode_records` gives them, to compare merged with unmerged.
        dtype: of the written weights; None for the base's.

    Returns:
        How far the written model is from the base with the (combined) adapter beside it.

    Raises:
        ValueError: see `combine`; or there are no records.
        FileExistsError: the folder holds something else than a merged model.
        CheckpointError: the folder could not be written; what was there stays.
    """
    check_replaceable(output)
    if not rows:
        raise ValueError("merge: expected records of a domain to compare on, got none (give --source NAME=FILE)")
    model = combine(base, folders, weights, method, density, seed)
    pad = base.tokenizer.pad_token_id
    logits, losses, own = {}, {}, {}
    for domain in rows if len(folders) > 1 else ():
        if domain in folders:
            model.set_adapter(domain)
            own[domain] = labelled_loss(model, rows[domain], pad)
            model.set_adapter(_MERGED)
    for domain in rows:
        logits[domain] = _logits(model, rows[domain], pad)
        losses[domain] = labelled_loss(model, rows[domain], pad)
    merged = model.merge_and_unload()
    if dtype is not None:
        merged = merged.to(dtype)

    def write(folder: Path) -> None:
        with quiet_progress_bars():
            merged.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        told = {"base": base.name, "digest": base.digest, "adapters": list(folders), "method": method}
        (folder / MERGED_FILE).write_text(json.dumps(told, indent=1))

    publish(output.parent, output.name, write)
    merged = merged.float()
    apart = {domain: (_logits(merged, rows[domain], pad) - logits[domain]).abs() for domain in rows}
    same = {domain: _logits(merged, rows[domain], pad).argmax(-1) == logits[domain].argmax(-1) for domain in rows}
    return Fidelity(
        largest=max(values.max().item() for values in apart.values()),
        mean=sum(values.mean().item() for values in apart.values()) / len(apart),
        agreement=sum(values.float().mean().item() for values in same.values()) / len(same),
        loss_unmerged=losses,
        loss_merged={domain: labelled_loss(merged, rows[domain], pad) for domain in rows},
        loss_own=own,
    )


@torch.no_grad()
def _logits(model: Any, rows: Any, pad_id: int) -> torch.Tensor:
    """Returns the (tokens, vocabulary) float32 logits of the first records."""
    batch = collate([rows[i] for i in range(min(_COMPARED, len(rows)))], pad_id)
    seen = batch.pop("attention_mask").bool()
    out = model(input_ids=batch["input_ids"], attention_mask=seen.long(), use_cache=False).logits
    return out[seen].float()
