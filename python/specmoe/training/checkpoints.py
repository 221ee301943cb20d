"""Checkpoints that are either complete or absent, whenever the process dies.

A checkpoint is written to a sibling directory with a name of its own, every file is flushed to the disk, a manifest
with each file's size and SHA-256 is written last, and only then the directory takes its final name in one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import CheckpointError
from .files import PARTIAL_PREFIX

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
_REPLACED = ".replaced-"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_name(step: int) -> str:
    """Returns the directory name of the checkpoint after `step` optimizer steps."""
    return f"checkpoint-{step}"


def checkpoint_step(path: Path) -> int:
    """Returns the step that `checkpoint_name` put into a checkpoint's name."""
    return int(path.name.rpartition("-")[2])


def publish(directory: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """Writes `directory/name` so that it is complete as soon as it exists.

    Args:
        directory: parent directory; made if absent.
        name: name of the new directory; an existing one is replaced.
        fill: writes the files into the directory that it is given.

    Returns:
        The path of the new directory.

    Raises:
        CheckpointError: it could not be written, on a full disk for one; what was there before stays as it was.
    """
    final, partial, replaced = (directory / f"{prefix}{name}" for prefix in ("", PARTIAL_PREFIX, _REPLACED))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        put_back(directory, name)
        if replaced.exists():
            shutil.rmtree(replaced)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        fill(partial)
        files = {path.name: _describe(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
        _flush(partial / MANIFEST)
        _flush(partial)
    # torch reports a failed write as a RuntimeError, safetensors as an error of its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"checkpoint: {final}: not written, what was saved before is kept: {error}") from error
    if final.exists():
        os.rename(final, replaced)
    os.rename(partial, final)
    _flush(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def put_back(directory: Path, name: str) -> None:
    """Puts back what a process was about to replace that died between the two renames of `publish`.

    Whoever looks for a published directory that may have been replaced calls this first.

    Args:
        directory: parent directory; it may be absent.
        name: name of the published directory.
    """
    replaced = directory / f"{_REPLACED}{name}"
    if replaced.is_dir() and not (directory / name).exists():
        # Another process may have done so in the meantime.
        with suppress(FileNotFoundError):
            os.rename(replaced, directory / name)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a published directory but its manifest: `publish` writes one of its own."""
    for path in source.iterdir():
        if path.name != MANIFEST:
            shutil.copyfile(path, target / path.name)


def clean_leftovers(directory: Path) -> list[str]:
    """Removes what a process that died while saving has left, and puts back what it was about to replace.

    Args:
        directory: the directory that `publish` writes to; it may be absent.

    Returns:
        The names of the entries that were dealt with.
    """
    found = []
    for path in sorted(directory.glob(".*")) if directory.is_dir() else []:
        if path.name.startswith(_REPLACED):
            put_back(directory, path.name.removeprefix(_REPLACED))
            if path.exists():
                shutil.rmtree(path)
        elif path.name.startswith(PARTIAL_PREFIX):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            continue
        found.append(path.name)
    return found


def checkpoint_steps(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in a directory, in ascending order."""
    names = (_NAME.fullmatch(path.name) for path in directory.iterdir()) if directory.is_dir() else ()
    return sorted(int(name[1]) for name in names if name)


def last_checkpoint(directory: Path) -> Path:
    """Returns the newest checkpoint, verified.

    Args:
        directory: where the run keeps its checkpoints.

    Returns:
        The checkpoint's path.

    Raises:
        CheckpointError: there is none, or the newest is damaged.
    """
    steps = checkpoint_steps(directory)
    if not steps:
        raise CheckpointError(f"resume: expected a checkpoint in {directory}, found none")
    path = directory / checkpoint_name(steps[-1])
    try:
        verify(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove {path} to resume from an earlier checkpoint") from None
    return path


def verify(path: Path) -> None:
    """Checks every file of a published directory against its manifest.

    Args:
        path: the directory.

    Raises:
        CheckpointError: a file is missing or damaged; the message names it.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"checkpoint: {manifest}: expected a manifest, found no such file")
    try:
        files = dict(json.loads(manifest.read_text())["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint: {manifest}: expected a JSON manifest, got a damaged file") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint: {file}: expected {expected['bytes']} bytes, found no such file")
        got = _describe(file, flush=False)
        for quantity in ("bytes", "sha256"):
            if got[quantity] != expected[quantity]:
                raise CheckpointError(
                    f"checkpoint: {file}: expected {quantity} {expected[quantity]}, got {got[quantity]}"
                )


def prune(directory: Path, keep: int, best_step: int | None) -> None:
    """Removes the oldest checkpoints.

    Args:
        directory: where the run keeps its checkpoints.
        keep: how many of the newest are kept.
        best_step: a step whose checkpoint is kept besides.
    """
    for step in checkpoint_steps(directory)[:-keep]:
        if step == best_step:
            continue
        # Renamed first: a half-removed directory must not look like a checkpoint.
        doomed = directory / f"{PARTIAL_PREFIX}{checkpoint_name(step)}"
        os.rename(directory / checkpoint_name(step), doomed)
        shutil.rmtree(doomed)


def _describe(path: Path, flush: bool = True) -> dict[str, int | str]:
    if flush:
        _flush(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    # Windows cannot open a directory; its rename is durable without this.
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
