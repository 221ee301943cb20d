"""Records from the columns of a file or of a data set of the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import DataError
from .records import Record

# Pairs of columns that hold the prompt and the completion, as data sets of the hub name them.
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "solution"),  # DAPO-Math-17k
    ("question", "answer"),  # GSM8K
    ("instruction", "output"),  # Alpaca
    ("problem", "solution"),
    ("query", "response"),
    ("input", "output"),
)
# Columns with a whole dialogue, a list of {"role": ..., "content": ...}.
DIALOGUES = ("messages", "chosen", "conversations")  # UltraChat, UltraFeedback, ShareGPT


def records_of(rows: Iterable[Mapping[str, Any]], columns: list[str], domain: str, source: str) -> Iterator[Record]:
    """Yields the records of a table.

    Args:
        rows: the table's rows.
        columns: its columns' names, which say where prompts and completions are.
        domain: the domain of the records.
        source: what an error calls the table.

    Raises:
        DataError: no known columns, or a row that holds something else than text in them.
    """
    pair = next((pair for pair in PAIRS if set(pair) <= set(columns)), None)
    dialogue = next((name for name in DIALOGUES if name in columns), None)
    if pair is None and dialogue is None and "text" not in columns:
        known = ", ".join(" and ".join(pair) for pair in PAIRS)
        raise DataError(
            f"data: {source}: expected columns {known}, or one of {', '.join(DIALOGUES)}, or text; "
            f"got {', '.join(columns) or 'none'}"
        )
    for number, row in enumerate(rows, 1):
        try:
            if pair is not None:
                prompt, completion = _text(row[pair[0]]), _text(row[pair[1]])
                if prompt.strip() and completion.strip():
                    yield Record(prompt.strip(), completion.strip(), domain, _text(row.get("final_answer") or ""))
            elif dialogue is not None:
                yield from _turns(row[dialogue], domain)
            elif (text := _text(row["text"]).strip()).count(" ") > 2:
                # Plain text has no prompts: its first words ask for the rest.
                words = text.split(" ")
                begin = max(1, min(12, len(words) // 3))
                yield Record(f"Continue: {' '.join(words[:begin])}", " ".join(words[begin:]), domain)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"data: {source}: row {number}: expected text: {error!r}") from error


def _text(value: Any) -> str:
    """Returns a cell's text; a prompt may be a dialogue of one turn, as in DAPO-Math-17k."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1]["content"]
    if not isinstance(value, str):
        raise TypeError(f"got {type(value).__name__}")
    return value


def _turns(messages: list[Mapping[str, str]], domain: str) -> Iterator[Record]:
    """Yields one record for each turn of the assistant that follows one of the user."""
    history: list[tuple[str, str]] = []
    said = None
    for message in messages:
        role = message.get("role") or message.get("from")
        text = message.get("content") or message.get("value") or ""
        if role in ("user", "human"):
            said = text.strip()
        elif role in ("assistant", "gpt") and said and text.strip():
            yield Record(said, text.strip(), domain, history=tuple(history))
            history.append((said, text.strip()))
            said = None
