"""Text to train on: a file, a data set of the hub, Tiny Shakespeare, or the prose that every Python carries."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from .errors import DataError
from .files import replace_file

TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_TIMEOUT_SECONDS = 60


def load_text(dataset: str, text_column: str = "text") -> str:
    """Returns the text of a data set.

    Args:
        dataset: "pydoc", "tinyshakespeare", a path to a UTF-8 text file, or a Hugging Face hub name.
        text_column: the column to read of a data set from the hub; its rows are joined by line ends.

    Returns:
        The text.

    Raises:
        DataError: the data set is missing, unreadable, or not the file it should be.
    """
    if dataset == "pydoc":
        return _pydoc_text()
    if dataset == "tinyshakespeare":
        return tiny_shakespeare_path().read_bytes().decode("utf-8")
    path = Path(dataset).expanduser()
    if path.is_file():
        return _file_text(path)
    if path.is_dir():
        raise DataError(f"dataset: expected a text file, got the directory {path}")
    # A hub name may end in a version, such as "-v1.0"; a file's extension has letters.
    if path.suffix[1:].isalpha() or path.is_absolute() or dataset.startswith((".", "~")):
        raise DataError(f"dataset: no such file: {path}")
    return _hub_text(dataset, text_column)


def tiny_shakespeare_path() -> Path:
    """Returns a verified copy of Tiny Shakespeare: from `MOE_DATA_DIR`, else from the cache, else downloaded.

    Raises:
        DataError: a copy has the wrong checksum, or there is none and the download failed.
    """
    folder = os.environ.get("MOE_DATA_DIR")
    if folder and (given := Path(folder) / "tinyshakespeare.txt").is_file():
        _check(given, given.read_bytes())
        return given
    cached = _cache_dir() / "tinyshakespeare.txt"
    if cached.is_file():
        _check(cached, cached.read_bytes())
        return cached
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=DOWNLOAD_TIMEOUT_SECONDS) as reply:
            content = reply.read()
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"dataset: tinyshakespeare is not in MOE_DATA_DIR={folder or ''} and the download of "
            f"{TINY_SHAKESPEARE_URL} failed: {error}"
        ) from error
    _check(Path(TINY_SHAKESPEARE_URL), content)
    cached.parent.mkdir(parents=True, exist_ok=True)
    replace_file(cached, lambda partial: partial.write_bytes(content))
    return cached


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specmoe"


def _check(source: Path, content: bytes) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != TINY_SHAKESPEARE_SHA256:
        raise DataError(f"dataset: {source}: expected SHA-256 {TINY_SHAKESPEARE_SHA256}, got {got}")


def _pydoc_text() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("dataset: pydoc: this Python was installed without pydoc_data; name a text file") from error
    return "\n".join(topics[name] for name in sorted(topics))


def _file_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"dataset: {path}: expected a readable UTF-8 text file: {error}") from error
    if not text:
        raise DataError(f"dataset: {path}: expected text, got an empty file")
    return text


def _hub_text(name: str, column: str) -> str:
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split="train")
    except Exception as error:  # the hub's client raises many unrelated types; each means "not available"
        raise DataError(
            f"dataset: {name!r} is neither 'pydoc', 'tinyshakespeare', nor a file, and was not loaded from the hub: "
            f"{type(error).__name__}: {error}"
        ) from error
    if column not in rows.column_names:
        raise DataError(f"dataset: {name}: text_column: expected one of {', '.join(rows.column_names)}, got {column!r}")
    return "\n".join(str(row) for row in rows[column])
