"""One task and its solution: a record of the training data with what is needed to check and to route it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...training.data.records import Record
from ...training.errors import DataError
from ...training.files import replace_file

# Kinds whose completions are sentences or names; they are scored apart.
TEXT_KINDS = ("explain", "routing")


@dataclass(frozen=True)
class Example(Record):
    """A record; its `domain` is the specialist in whose corpus it is, its `answer` the value in HLXL ("" without one).

    Attributes:
        kind: the kind of task.
        source: the notation of the value in the prompt, "" without one.
        target: the notation of the completion, "" where it is a sentence or a name.
        route: the specialist that a router should choose.
        shape: the structure of the value, "" without one.
        phrasing: the pattern of the prompt.
    """

    kind: str = ""
    source: str = ""
    target: str = ""
    route: str = ""
    shape: str = ""
    phrasing: str = ""

    @property
    def is_conversion(self) -> bool:
        """Whether the completion is a value, which the codec can check."""
        return self.kind not in TEXT_KINDS


def write_examples(examples: Iterable[Example], path: Path) -> int:
    """Writes examples as JSONL, whole or not at all, and returns their number."""
    lines = [json.dumps({k: v for k, v in asdict(e).items() if k != "history"}, ensure_ascii=False) for e in examples]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8"))
    return len(lines)


def read_examples(path: Path) -> Iterator[Example]:
    """Yields the examples of a file.

    Raises:
        DataError: a line that is no example.
    """
    names = {field.name for field in fields(Example)} - {"history"}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                told: dict[str, Any] = {name: str(row[name]) for name in names}
                yield Example(**told)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"data: {path}: line {number}: expected an example: {error!r}") from error
