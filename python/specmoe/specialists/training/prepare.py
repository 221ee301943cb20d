"""The base that all specialists of a family share, in NF4."""

from __future__ import annotations

from pathlib import Path

from ...training.checkpoints import MANIFEST, clean_leftovers, copy_files, publish
from ...training.errors import CheckpointError
from ..bases import quantize_base, quantized_digest
from ..bases.default import BaseSettings, default_base
from ..family import DEFAULT, FAMILY_FILE, Family, open_family


def prepare_family(
    folder: Path, base: str | None, settings: BaseSettings | None = None, progress: bool | None = None
) -> Family:
    """Returns the family of a folder; the first call makes its base, which may take long.

    Args:
        folder: the family's folder; made if absent.
        base: a path or hub name; None for the default base, which is pretrained once, or for the one that is there.
        settings: of the default base; None for the defaults.
        progress: show a bar; None shows one where standard error is a terminal.

    Raises:
        CheckpointError: the family has another base.
        ValueError: the base cannot be loaded.
        TrainingInterrupted: Ctrl-C in the default base's pretraining; the state is saved.
    """
    folder = folder.expanduser()
    asked = DEFAULT if base is None else str(Path(base).expanduser().resolve()) if Path(base).is_dir() else base
    if (folder / FAMILY_FILE).is_file():
        family = open_family(folder)
        if base is not None and family.base != asked:
            raise CheckpointError(f"specialists: {folder}: expected its own base {family.base}, got {asked}")
        if quantized_digest(family.base_folder) != family.digest:
            raise CheckpointError(f"specialists: {family.base_folder}: expected the base that {FAMILY_FILE} names")
        return family
    folder.mkdir(parents=True, exist_ok=True)
    clean_leftovers(folder)
    family = Family(folder, asked, "")
    if not (family.base_folder / MANIFEST).is_file():
        source: str | Path = asked
        if base is None:
            pretrained = default_base(settings, progress)
            source = publish(folder, family.full_precision_folder.name, lambda target: copy_files(pretrained, target))
        quantize_base(source, family.base_folder)
    family = Family(folder, asked, quantized_digest(family.base_folder))
    family.save()
    return family
