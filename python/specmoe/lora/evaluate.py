"""Every adapter on every domain, the routed systems beside them, and answers that can be checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..training.data import Record, encode_records, is_right, messages_of
from ..training.files import replace_file
from .losses import RecordLosses, record_losses
from .system import MIXED, LoraSystem, complete

BASE = "base"
_BATCH = 48


@dataclass(frozen=True)
class Evaluation:
    """What was found on held-out records.

    Attributes:
        losses: for each system and domain, nats per labelled token. Systems are the adapters, "base", and the ways of
            choosing: "right expert", "routed", "top2", "arrow".
        accuracy: for each domain with answers and each system, the share of generated answers that are right.
        answers: for each of these domains, how many were asked for.
        routed_right: for each domain, the share of prompts for which the router named it.
        records: held-out records of each domain.
    """

    losses: dict[str, dict[str, float]]
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    routed_right: dict[str, float] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)

    @property
    def experts(self) -> list[str]:
        """The domains that have an adapter."""
        return [domain for domain in next(iter(self.losses.values())) if domain in self.losses]

    def own_is_best(self) -> bool:
        """Whether each expert is the best of the experts on its own domain."""
        return all(
            min(self.experts, key=lambda expert: self.losses[expert][domain]) == domain for domain in self.experts
        )

    def margins(self) -> dict[str, float]:
        """Returns for each domain how far its expert is under the adapter of all domains, in nats."""
        return {name: self.losses[MIXED][name] - self.losses[name][name] for name in self.experts}

    def routed_excess(self) -> float:
        """Returns by which share the routed system's loss, the mean over domains, is above the right experts'."""
        routed, right = (sum(self.losses[name].values()) for name in ("routed", "right expert"))
        return routed / right - 1

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        told = dataclasses.asdict(self) | {"own_is_best": self.own_is_best()}
        if MIXED in self.losses:
            told["margins_over_mixed"] = self.margins()
        if "routed" in self.losses:
            told["routed_excess"] = self.routed_excess()
        replace_file(path, lambda partial: partial.write_text(json.dumps(told, indent=1)))


def evaluate(
    system: LoraSystem, records: Mapping[str, Sequence[Record]], max_length: int, answers: int = 0
) -> Evaluation:
    """Evaluates the adapters of a system and, if it has a router, the ways of choosing among them.

    Args:
        system: the system.
        records: held-out records of each domain.
        max_length: longer ones are left out, in tokens.
        answers: of how many records of each domain with answers the answer is generated and checked.
    """
    losses: dict[str, dict[str, float]] = {name: {} for name in (BASE, *system.bank.names)}
    routed_right, count = {}, {}
    for domain, held_out in records.items():
        rows = encode_records(held_out, system.base.tokenizer, max_length)
        prompts = [held_out[row].prompt for row in rows["row"]]
        found = {name: _of_mode(system, rows, prompts, name) for name in losses if name in (BASE, *system.bank.names)}
        count[domain] = len(rows)
        for name, of_record in found.items():
            losses[name][domain] = of_record.mean
        if system.router is None or domain not in found:
            continue
        chosen = [choice or BASE for choice in system.choices(prompts, "auto")]
        routed_right[domain] = sum(choice == domain for choice in chosen) / len(chosen)
        # A record's loss does not depend on its batch: what the router would have got was measured above.
        nats = sum(found[str(choice)].nats[i] for i, choice in enumerate(chosen))
        losses.setdefault("right expert", {})[domain] = found[domain].mean
        losses.setdefault("routed", {})[domain] = float(nats / found[BASE].tokens.sum())
        for mode in ("top2", "arrow"):
            losses.setdefault(mode, {})[domain] = _of_mode(system, rows, prompts, mode).mean
    accuracy, asked = {}, {}
    for domain, held_out in records.items():
        checked = [record for record in held_out if record.answer][:answers]
        if checked and domain in system.bank.names:
            modes = [domain, BASE, *([MIXED] if MIXED in system.bank.names else [])]
            accuracy[domain], asked[domain] = _accuracy(system, checked, modes), len(checked)
    return Evaluation(losses, accuracy, asked, routed_right, count)


def _of_mode(system: LoraSystem, rows: Any, prompts: list[str], mode: str) -> RecordLosses:
    def chosen(places: list[int]) -> Any:
        return system.chosen([prompts[place] for place in places], mode)

    return record_losses(system.base.model, rows, system.base.tokenizer.pad_token_id, chosen)


def _accuracy(system: LoraSystem, records: Sequence[Record], modes: Sequence[str]) -> dict[str, float]:
    """Returns the share of right answers of each mode; the modes are rows of the same batches."""
    right = dict.fromkeys(modes, 0)
    each = max(1, _BATCH // len(modes))
    for start in range(0, len(records), each):
        part = records[start : start + each]
        asked = [(record, mode) for record in part for mode in modes]
        with system.bank.rows([None if mode == BASE else mode for _, mode in asked]):
            said = complete(system.base, [messages_of(record) for record, _ in asked], 128)
        for (record, mode), text in zip(asked, said, strict=True):
            right[mode] += is_right(text, record.answer)
    return {mode: count / len(records) for mode, count in right.items()}
