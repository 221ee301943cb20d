"""Where a family of specialists lies on disk, and which base its members share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..training.checkpoints import put_back
from ..training.errors import CheckpointError
from ..training.files import replace_file
from ..training.tuning.tune import MODEL_DIR
from .corpora import SPECIALISTS

FAMILY_FILE = "family.json"
DEFAULT = "default"


@dataclass(frozen=True)
class Family:
    """A folder with a quantized base and an adapter for each specialist.

    Attributes:
        folder: the folder.
        base: the path or hub name that the base came from, or `DEFAULT`.
        digest: of the quantized base, see `quantized_digest`.
    """

    folder: Path
    base: str
    digest: str

    @property
    def base_folder(self) -> Path:
        """Where the base is in NF4."""
        return self.folder / "base-nf4"

    @property
    def full_precision_folder(self) -> Path:
        """Where the default base is in full precision; other bases are not kept."""
        return self.folder / "base"

    def run_folder(self, name: str) -> Path:
        """Returns the folder of a specialist's training run."""
        return self.folder / name

    def adapter_folder(self, name: str) -> Path:
        """Returns where a specialist's adapter is, in PEFT's format."""
        return self.run_folder(name) / MODEL_DIR

    @property
    def specialists(self) -> tuple[str, ...]:
        """The specialists that are trained, in the order of `SPECIALISTS`."""
        for name in SPECIALISTS:
            put_back(self.run_folder(name), MODEL_DIR)
        return tuple(name for name in SPECIALISTS if (self.adapter_folder(name) / "adapter_config.json").is_file())

    def save(self) -> None:
        """Writes `family.json`."""
        told = {name: str(value) for name, value in asdict(self).items() if name != "folder"}
        replace_file(self.folder / FAMILY_FILE, lambda partial: partial.write_text(json.dumps(told, indent=1)))


def open_family(folder: Path) -> Family:
    """Returns the family of a folder.

    Raises:
        CheckpointError: there is none, or its file is damaged.
    """
    folder = folder.expanduser()
    path = folder / FAMILY_FILE
    if not path.is_file():
        raise CheckpointError(f"specialists: {folder}: expected {FAMILY_FILE}, found no such file: train them first")
    try:
        told = json.loads(path.read_text())
        return Family(folder, str(told["base"]), str(told["digest"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"specialists: {path}: expected the base and its digest: {error!r}") from error
