"""The models of a folder: for each specialist its adapter and its base, and what they take in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...training.checkpoints import put_back
from ...training.tuning.tune import MODEL_DIR
from ..learning.original import original_folder

COORDINATOR = "coordinator"
BASE_FOLDER = "base-nf4"
# In a specialist's folder, where its base is another one than the family's.
MEMBER_FILE = "specialist.json"


class FamilyError(OSError):
    """A family lacks a model, or one of its files is damaged."""


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        name: the specialist.
        base: the folder of its base.
        adapter: the folder of its adapter, None where the base alone answers.
    """

    name: str
    base: Path
    adapter: Path | None

    @cached_property
    def base_bytes(self) -> int:
        """Bytes of the base's weights, as they lie on disk and in memory."""
        return sum(path.stat().st_size for path in self.base.glob("*.safetensors"))

    @cached_property
    def adapter_bytes(self) -> int:
        """Bytes that the adapter takes at most: its factors, and once more while those of all adapters are stacked.

        One that has learned corrections is there as it was before them as well.
        """
        if self.adapter is None:
            return 0
        copies = 4 if original_folder(self.adapter) is not None else 2
        return copies * sum(path.stat().st_size for path in self.adapter.glob("*.safetensors"))


def members_of(folder: Path) -> dict[str, Member]:
    """Returns the models of a family by name, the coordinator first.

    `NAME/model` holds an adapter on the family's `base-nf4`. A `NAME/specialist.json` may name another base, by a path
    that is taken from NAME on: `{"base": "../other"}`; without an adapter that base alone answers.

    Raises:
        FamilyError: there is no coordinator, a base is missing, or a file is damaged.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FamilyError(f"specialists: {folder}: found no such folder: `specmoe specialists train all` makes one")
    put_back(folder, BASE_FOLDER)
    for path in folder.iterdir():
        put_back(path, MODEL_DIR)
    found = {path.name: _member(path) for path in sorted(folder.iterdir()) if _is_member(path)}
    if COORDINATOR not in found:
        there = ", ".join(found) or "none"
        raise FamilyError(
            f"specialists: {folder}: expected {COORDINATOR}/{MODEL_DIR}, found of models {there}: "
            "`specmoe specialists train all` makes them"
        )
    for member in found.values():
        if not member.base_bytes:
            raise FamilyError(f"specialists: {member.name}: expected the weights of its base in {member.base}")
    return {COORDINATOR: found.pop(COORDINATOR), **found}


def _is_member(path: Path) -> bool:
    return (path / MEMBER_FILE).is_file() or (path / MODEL_DIR / "adapter_config.json").is_file()


def _member(path: Path) -> Member:
    base, adapter = path.parent / BASE_FOLDER, path / MODEL_DIR
    if (told := path / MEMBER_FILE).is_file():
        try:
            base = (path / json.loads(told.read_text())["base"]).resolve()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FamilyError(f"specialists: {told}: expected an object with a base: {error!r}") from error
    return Member(path.name, base, adapter if (adapter / "adapter_config.json").is_file() else None)
