"""What a folder of experts was asked to hold: written at its first training, and the same ever after."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..training.data import DOMAINS
from ..training.errors import CheckpointError
from ..training.files import replace_file
from .presets import PRESETS, STEPS, ExpertPreset, expert_preset

PLAN_FILE = "experts.json"


@dataclass(frozen=True)
class Plan:
    """The choices that all experts of a folder share.

    Attributes:
        preset: a name of `PRESETS`.
        init: a folder or hub name of the GPT-2 that the experts begin as; None for random weights.
        sources: where a domain's records come from, for those that do not take their default.
        limit: the most records of a domain; None for all.
        steps: optimizer steps of each expert; None for each domain's own.
        batch_size: records in a batch; None for the preset's.
        context: the longest record in tokens; None for the preset's.
        seed: of records, weights and order.

    Raises:
        ValueError: an unknown preset or domain.
    """

    preset: str = "small"
    init: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    context: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS or (self.preset == "init") != (self.init is not None):
            known = ", ".join(name for name in PRESETS if name != "init")
            raise ValueError(f"hierarchical: preset: expected one of {known}, or --init alone, got {self.preset!r}")
        if unknown := [name for name in self.sources if name not in DOMAINS]:
            raise ValueError(f"hierarchical: data: expected one of {', '.join(DOMAINS)}, got {unknown[0]!r}")

    @property
    def size(self) -> ExpertPreset:
        """The preset with this plan's changes."""
        return expert_preset(self.preset, batch_size=self.batch_size, context=self.context)

    def steps_of(self, domain: str) -> int:
        """Returns an expert's optimizer steps."""
        return self.steps or STEPS[domain]


def read_plan(root: Path) -> Plan:
    """Returns the plan of a folder of experts.

    Raises:
        CheckpointError: it has none, or a damaged one.
    """
    path = root / PLAN_FILE
    if not path.is_file():
        raise CheckpointError(
            f"hierarchical: {root}: expected experts, found none; `specmoe hierarchical train --expert all` makes them"
        )
    try:
        return Plan(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"hierarchical: {path}: expected a plan of experts, got a damaged file") from error


def write_plan(root: Path, plan: Plan) -> None:
    """Makes a plan that of a folder."""
    root.mkdir(parents=True, exist_ok=True)
    content = json.dumps(dataclasses.asdict(plan), indent=1) + "\n"
    replace_file(root / PLAN_FILE, lambda partial: partial.write_text(content))


def claim_plan(root: Path, **given: Any) -> Plan:
    """Returns the plan of a folder, or for a new one a plan of what is given, which `write_plan` then keeps there.

    Args:
        root: the folder.
        given: values of `Plan`; None leaves the folder's own, or the default.

    Raises:
        ValueError: the folder's experts have another value.
    """
    given = {name: value for name, value in given.items() if value is not None and value != {}}
    if "init" in given:
        given.setdefault("preset", "init")
    if not (root / PLAN_FILE).exists():
        return Plan(**given)
    plan = read_plan(root)
    for name, value in given.items():
        if (stored := getattr(plan, name)) != value:
            raise ValueError(
                f"hierarchical: {name}: expected {stored!r} as the experts in {root} have it, got {value!r}; "
                f"leave it out or choose another folder"
            )
    return plan
