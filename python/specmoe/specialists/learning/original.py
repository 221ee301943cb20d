"""A specialist as it was before its corrections: it answers whatever none of them is about."""

from __future__ import annotations

from pathlib import Path

from .log import KEPT, CorrectionLog
from .versions import version_folder, weights_digest


def original_name(name: str) -> str:
    """Returns what a specialist's adapter is called as it was before its corrections."""
    return f"{name} before its corrections"


def original_folder(adapter: Path) -> Path | None:
    """Returns where an adapter is as it was before its first correction; None where it has learned none.

    An adapter that was trained again since has learned none of the corrections before.

    Args:
        adapter: `FAMILY/NAME/model`.

    Raises:
        ValueError: the file of corrections is damaged.
    """
    log = CorrectionLog(adapter.parent.parent)
    kept = log.numbers(KEPT, adapter.parent.name)
    if not kept or weights_digest(adapter) != log.reasons[kept[-1]]:
        return None
    first = kept.pop()
    # Back to where a version is not what the correction before it has left.
    while kept and weights_digest(version_folder(adapter, first)) == log.reasons[kept[-1]]:
        first = kept.pop()
    folder = version_folder(adapter, first)
    return folder if folder.is_dir() else None
