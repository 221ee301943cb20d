"""The corpora as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ...training.files import replace_file
from .example import write_examples
from .generate import generate
from .registry import SPECIALISTS, specialist_named
from .settings import CorpusSettings
from .sides import SIDES


def write_corpora(
    folder: Path,
    settings: CorpusSettings | None = None,
    names: Sequence[str] | None = None,
    told: Callable[[Path, int], None] | None = None,
) -> list[Path]:
    """Writes NAME.train.jsonl and NAME.test.jsonl for each specialist, and the settings as corpus.json.

    Args:
        folder: where to; it is made where there is none.
        settings: sizes and the seed; None for the defaults.
        names: the specialists; None for all.
        told: called with each file and its number of examples.

    Raises:
        ValueError: another name, or sizes that do not allow as many examples.
    """
    settings = settings or CorpusSettings()
    names = [specialist_named(name).name for name in (names or SPECIALISTS)]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        for side in SIDES:
            path = folder / f"{name}.{side}.jsonl"
            count = write_examples(generate(name, side, settings), path)
            written.append(path)
            if told is not None:
                told(path, count)
    text = json.dumps({"specialists": names, **asdict(settings)}, indent=2)
    replace_file(folder / "corpus.json", lambda partial: partial.write_text(f"{text}\n", encoding="utf-8"))
    return written
