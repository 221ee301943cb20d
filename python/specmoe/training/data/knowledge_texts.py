"""Knowledge: Python's own topics and docstrings, and WikiText where there is a file of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .records import Record
from .standard_library import library_files

_PROMPTS = ("Explain {}.", "What is {}?", "Tell me about {}.", "What should I know about {}?", "Describe {}.")
# "= Title =" begins an article of WikiText, "= = Section = =" a part of it.
_HEADING = re.compile(r"^ ?(=(?: =)*) (.+?) \1 ?$")
# WikiText separates punctuation; "@-@" stands for a hyphen inside a word.
_DETOKENIZED = (
    (r" @(.)@ ", r"\1"),
    (r" ([,.;:!?%)\]])", r"\1"),
    (r"([(\[]) ", r"\1"),
    (r" 's\b", "'s"),
    (r' " (.*?) " ', r' "\1" '),
)
_ENOUGH = 80  # characters; shorter paragraphs are captions and lists
_ENOUGH_OF_A_DOCSTRING = 40  # these are written to be short


def read_topics() -> Iterator[Record]:
    """Yields one record a paragraph of prose of `pydoc_data.topics`.

    Raises:
        DataError: this Python has none.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("data: this Python was installed without pydoc_data; name a source for knowledge") from error
    for name in sorted(topics):
        title, heading = f"Python's {name.replace('-', ' ')}", ""
        lines = topics[name].split("\n\n")
        for at, paragraph in enumerate(lines):
            rows = paragraph.strip("\n").split("\n")
            if len(rows) == 2 and set(rows[1]) <= set('*=-~^"') and rows[1]:
                heading = rows[0].replace('"', "")
                continue
            if _is_prose(paragraph, _ENOUGH):
                yield _record(f"{title}: {heading}" if heading else title, at, " ".join(paragraph.split()))


def read_docstrings(folder: Path | None = None) -> Iterator[Record]:
    """Yields one record a paragraph of prose in the docstrings of public modules and classes.

    Args:
        folder: where the Python files are; None for the standard library.

    Raises:
        DataError: the folder has no Python files.
    """
    for module, _, tree in library_files(folder):
        if any(part.startswith("_") for part in module.split(".")):
            continue
        yield from _prose_of(f"Python's module {module}", tree)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from _prose_of(f"Python's class {module}.{node.name}", node)


def _prose_of(subject: str, node: ast.Module | ast.ClassDef) -> Iterator[Record]:
    paragraphs = (ast.get_docstring(node) or "").split("\n\n")
    prose = [" ".join(each.split()) for each in paragraphs if _is_prose(each, _ENOUGH_OF_A_DOCSTRING)]
    for place, text in enumerate(prose):
        yield _record(subject, place, text)


def _is_prose(paragraph: str, enough: int) -> bool:
    """Says whether this is no grammar, example or list: those are indented or do not end as a sentence does."""
    return not paragraph[:1].isspace() and paragraph.rstrip().endswith((".", ":")) and len(paragraph) >= enough


def read_wikitext(path: Path) -> Iterator[Record]:
    """Yields one record a paragraph of a WikiText file: its article, section and place ask for it.

    Raises:
        DataError: the file has no article.
    """
    article, section, found = "", "", False
    place = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        heading = _HEADING.match(line)
        if heading:
            if heading[1] == "=":
                article, section, found = heading[2], "", True
            else:
                section = heading[2]
            place = 0
        elif article and len(line) >= _ENOUGH and "<unk>" not in line[:200]:
            yield _record(f"{article}, {section.lower()}" if section else article, place, _readable(line))
            place += 1
    if not found:
        raise DataError(f"data: {path}: expected WikiText's articles, found none")


def _record(subject: str, place: int, text: str) -> Record:
    form = _PROMPTS[(sum(map(ord, subject)) + place) % len(_PROMPTS)]
    return Record(form.format(subject if place == 0 else f"{subject} ({place + 1})"), text, "knowledge")


def _readable(line: str) -> str:
    text = line.strip()
    for pattern, replacement in _DETOKENIZED:
        text = re.sub(pattern, replacement, text)
    return text
