"""Code: the functions with docstrings of Python's standard library."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

from .records import Record
from .standard_library import library_files

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
    for _, source, tree in library_files(folder):
        yield from _functions_of(source, tree)


def _functions_of(source: str, tree: ast.Module) -> Iterator[Record]:
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
