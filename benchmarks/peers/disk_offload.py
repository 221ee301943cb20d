"""transformers with accelerate's disk offload, as its documentation has it: `device_map="auto"` and `max_memory`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers import Unavailable


def load(checkpoint: Path, memory: int, folder: Path) -> Any:
    """Load a model of which what is beyond `memory` bytes stays on disk; merged experts are written to `folder`.

    Raises:
        Unavailable: accelerate is not installed.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise Unavailable("accelerate is not installed") from error
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype="auto", device_map="auto", max_memory={"cpu": memory}, offload_folder=str(folder)
    ).eval()
