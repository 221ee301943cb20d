"""Code: the functions with docstrings of Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .records import Record

# Folders that hold tests, other people's packages, or none of the library's own code.
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "turtledemo", "lib2to3", "__pycache__"}
_PROMPTS = (
    "Write a Python function {name}: {purpose}",
    "Implement `{name}` in Python. {purpose}",
    "Complete this function:\ndef {signature}\n    {purpose}",
    "Python: {purpose} Call it {name}.",
)


def read_functions(folder: Path | None = None) -> Iterator[Record]:
    """Yields one record a function: its name and the first sentence of its docstring, and its source without that.

    Args:
        folder: where the Python files are; None for the standard library.

    Raises:
        DataError: the folder has no Python files.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    files = sorted(path for path in root.rglob("*.py") if not _SKIPPED & set(path.relative_to(root).parts[:-1]))
    if not files:
        raise DataError(f"data: {root}: expected Python files, found none")
    for path in files:
        yield from _functions_of(path)


def _functions_of(path: Path) -> Iterator[Record]:
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return  # templates and files in other encodings lie among the sources
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        purpose = _first_sentence(ast.get_docstring(node) or "")
        if not purpose or node.end_lineno is None:
            continue
        # The docstring is the body's first statement; what follows it is the code.
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        body = lines[node.body[0].end_lineno or node.body[0].lineno : node.end_lineno]
        while body and not body[0].strip():
            body = body[1:]
        code = textwrap.dedent("\n".join(head + body))
        signature = f"{node.name}({ast.unparse(node.args)}):"
        form = _PROMPTS[sum(map(ord, node.name)) % len(_PROMPTS)]
        yield Record(form.format(name=node.name, purpose=purpose, signature=signature), code, "code")


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = paragraph.split(". ")[0]
    return sentence if sentence.endswith(".") or not sentence else f"{sentence}."
