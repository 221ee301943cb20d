"""What the installation wrote down about the native modules: built, or why not."""

from __future__ import annotations

import json
from pathlib import Path

_PATH = Path(__file__).with_name("_build.json")


def reason_not_built(part: str) -> str:
    """Say why a native module does not exist.

    Args:
        part: "native" for `moe_kernels._C`, "cuda" for `moe_kernels._cuda`.
    """
    try:
        reason = json.loads(_PATH.read_text())[part]["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        reason = None
    return reason or "there is no record of its build; install the package with pip"
