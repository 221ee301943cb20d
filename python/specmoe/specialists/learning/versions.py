"""An adapter's earlier versions, to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from ...lora.adapters import Adapter
from ...training.checkpoints import MANIFEST, copy_files, publish, verify

WEIGHTS = "adapter_model.safetensors"
VERSIONS = "versions"
_PREFIX = "base_model.model."


def version_folder(adapter: Path, number: int) -> Path:
    """Returns where the adapter is kept as it was before a correction."""
    return adapter.parent / VERSIONS / f"before-{number}"


def weights_digest(folder: Path) -> str:
    """Returns the digest of an adapter's weights that its manifest tells."""
    return str(json.loads((folder / MANIFEST).read_text())["files"][WEIGHTS]["sha256"])


def keep_version(adapter: Path, number: int) -> None:
    """Copies an adapter's files, byte for byte, whole or not at all."""
    target = version_folder(adapter, number)
    publish(target.parent, target.name, lambda folder: copy_files(adapter, folder))


def replace_weights(folder: Path, adapter: Adapter) -> None:
    """Writes an adapter's factors in place of those in a folder, whole or not at all; its other files stay."""
    weights = {
        f"{_PREFIX}{layer}.lora_{which}.weight": factor.float().cpu().contiguous()
        for layer, pair in adapter.factors.items()
        for which, factor in zip("AB", pair, strict=True)
    }

    def write(target: Path) -> None:
        copy_files(folder, target)
        save_file(weights, target / WEIGHTS, metadata={"format": "pt"})

    publish(folder.parent, folder.name, write)


def restore_version(adapter: Path, number: int) -> None:
    """Puts an adapter's files back as they were before a correction; the version stays.

    Raises:
        CheckpointError: the version is missing or damaged.
    """
    source = version_folder(adapter, number)
    verify(source)
    publish(adapter.parent, adapter.name, lambda folder: copy_files(source, folder))


def drop_version(adapter: Path, number: int) -> None:
    """Removes what `keep_version` has kept."""
    shutil.rmtree(version_folder(adapter, number), ignore_errors=True)
