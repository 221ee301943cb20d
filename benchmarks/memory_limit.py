"""A memory limit for a command: a control group of its own, where the system lets us make one.

Page cache that a process in the group reads in counts too, so that the system's caching has the same limit as ours.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

# Interface files of the two versions: limit, largest use.
VERSIONS = {
    "memory.limit_in_bytes": ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    "memory.max": ("memory.max", "memory.peak"),
}
ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execvp(sys.argv[2], sys.argv[2:])"


class LimitedMemory:
    """A control group with a memory limit.

    Args:
        folder: the group's; None for no limit, as where none can be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def run(self, command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command within the limit, and wait for it; options are those of `subprocess.run`."""
        if self.folder is not None:
            command = ["python3", "-c", ENTER, str(self.folder / "cgroup.procs"), *command]
        return subprocess.run(command, text=True, **options)  # type: ignore[call-overload, no-any-return]

    def peak(self) -> int | None:
        """Return the most bytes that the group has held, page cache included; None where that is not known."""
        for _, largest in VERSIONS.values():
            with contextlib.suppress(OSError, TypeError):
                return int((self.folder / largest).read_text())  # type: ignore[operator]
        return None


@contextlib.contextmanager
def limited_memory(limit: int) -> Iterator[LimitedMemory]:
    """Make a control group below this process's own, and remove it afterwards."""
    folder = None
    for parent, name in own_groups():
        made = parent / f"moe-kernels-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            (made / name).write_text(str(limit))
            folder = made
            break
        except OSError:
            made.rmdir()
    try:
        yield LimitedMemory(folder)
    finally:
        if folder is not None:
            folder.rmdir()


def own_groups() -> list[tuple[Path, str]]:
    """Return the folders of this process's control groups that limit memory, each with the file that says the limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    root = Path("/sys/fs/cgroup")
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found.append((root / "memory" / path.lstrip("/"), "memory.limit_in_bytes"))
        elif not controllers:
            found.append((root / path.lstrip("/"), "memory.max"))
    return found
