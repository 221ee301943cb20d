"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# A name with this prefix is unfinished; whoever finds one at start-up may remove it.
PARTIAL_PREFIX = ".partial-"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that readers see the old or the new content, never a part.

    Args:
        path: the file.
        write: writes the content to the path that it is given, which has the same suffix.
    """
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}")
    write(partial)
    os.replace(partial, path)
