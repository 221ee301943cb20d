"""Files of one published directory in another."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..training.checkpoints import MANIFEST


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a directory but its manifest: `publish` writes one of its own."""
    for path in source.iterdir():
        if path.name != MANIFEST:
            shutil.copyfile(path, target / path.name)
