"""The results of the walk as the table of docs/models.md."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from model_compare import Result, compare
from model_walk import Case, cases

HEAD = """# Models of transformers

Every configuration class of transformers {version} whose model has experts behind the experts interface. Each was built
tiny with random weights, saved, loaded with `experts_implementation="moe_kernels"`, and compared in {dtype} with
transformers' own implementations: first output, loss, the gradient of every parameter, eight greedily generated tokens.
This page is written by `python scripts/list_models.py`; `tests/models` makes the same comparison.

The pairs are errors relative to the same model in float64 (where float32 is written into the model's code: to eager):
the worst of transformers' `eager`, `grouped_mm` and `batched_mm`, then ours. "Gradient" is the parameter for which ours
is largest. "in steps" means two grouped products with the model's own function between or after them.

{count} configuration classes, {experts} classes of experts.

| configuration | model | experts | computed as | output | loss | gradient | same tokens |
|---|---|---|---|---|---|---|---|
"""


def walk(dtype: torch.dtype = torch.float32) -> Iterator[tuple[Case, Result]]:
    """Compare every model; one that cannot be built or run is a result as well."""
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield case, compare(case, Path(folder), dtype)
            # Whatever a model does is what is reported.
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                yield case, Result("", None, None, None, "", None, (reason,))


def _pair(errors: tuple[float, float] | None) -> str:
    return "–" if errors is None else f"{errors[0]:.0e}, {errors[1]:.0e}"


def row(case: Case, result: Result) -> str:
    """Return one line of the table."""
    tokens = {None: "–", True: "yes", False: "**no**"}[result.same_tokens]
    names = (case.config.__name__, case.model.__name__, ", ".join(e.__name__ for e in case.experts), result.computed)
    numbers = (_pair(result.output), _pair(result.loss), _pair(result.gradient), tokens)
    return "| " + " | ".join(names + numbers) + " |" + "".join(f" {p}" for p in result.problems)


def page(results: list[tuple[Case, Result]], dtype: torch.dtype = torch.float32) -> str:
    """Return the text of docs/models.md."""
    experts = {e for case, _ in results for e in case.experts}
    name = str(dtype).removeprefix("torch.")
    head = HEAD.format(version=transformers.__version__, dtype=name, count=len(results), experts=len(experts))
    return head + "".join(row(*result) + "\n" for result in results)


def documented(text: str) -> dict[str, tuple[str, ...]]:
    """Read model, experts and the way of computing, by configuration, from the page."""
    rows = [line.strip("|\n ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {r[0]: tuple(r[1:4]) for r in rows}
