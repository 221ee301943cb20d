"""The Python files of the standard library, or of another folder, with their syntax trees."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

# Folders that hold tests, other people's packages, or none of the library's own code.
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "turtledemo", "lib2to3", "__pycache__"}


def library_files(folder: Path | None = None) -> Iterator[tuple[str, str, ast.Module]]:
    """Yields the dotted module name, source and tree of each file that can be read, in the order of their paths.

    Args:
        folder: where the Python files are; None for the standard library.

    Raises:
        DataError: the folder has no Python files.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    files = sorted(path for path in root.rglob("*.py") if not _SKIPPED & set(path.relative_to(root).parts[:-1]))
    if not files:
        raise DataError(f"data: {root}: expected Python files, found none")
    for path in files:
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(source)
        except (OSError, ValueError, SyntaxError):
            continue  # templates and files in other encodings lie among the sources
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), source, tree
