"""Where things that can be made again are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for trained demo models and stores: $SPECMOE_CACHE, or the platform's cache folder."""
    if given := os.environ.get("SPECMOE_CACHE"):
        return Path(given).expanduser()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "specmoe"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "specmoe"
    if sys.platform == "win32" and (given := os.environ.get("LOCALAPPDATA")):
        return Path(given) / "specmoe" / "cache"
    return Path.home() / ".cache" / "specmoe"
