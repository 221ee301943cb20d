"""Evaluation of a family: `evaluate_family(Path("runs/specialists"), 3000)`, then `write_report`."""

from __future__ import annotations

from .evaluate import evaluate_family
from .report import write_report
from .scores import Evaluation

__all__ = ["Evaluation", "evaluate_family", "write_report"]
