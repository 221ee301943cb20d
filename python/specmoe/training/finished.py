"""The report of a run that is done, with what the run was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointError


def finished_report(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the fields of a run's report, `model_dir` as a path; None where the run is not done.

    Args:
        path: the report, whose entry "identity" says what the run was.
        identity: what it shall have been.

    Raises:
        CheckpointError: it was another run.
    """
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    found = stored.pop("identity")
    for name, value in identity.items():
        if found.get(name) != value:
            raise CheckpointError(f"resume: {name}: expected {found.get(name)!r} as in {path}, got {value!r}")
    return {**stored, "model_dir": path.parent / stored["model_dir"]}
