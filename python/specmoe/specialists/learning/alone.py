"""One process at a time changes what a family has learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "corrections.lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the block no other process learns for the family; waits for one that does, however it ends."""
    with (folder / LOCK_FILE).open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
