"""Comparing ways to fill the cache on the same bytes, slots, prompts and kernels."""

from __future__ import annotations

from .arms import ARMS, Arm, ArmResult, count_runs
from .model import run_model_arms
from .plot import plot_results
from .replay import Replay, replay_store, run_replay_arms, shape_for
from .summary import interpret, results_table

__all__ = [
    "ARMS",
    "Arm",
    "ArmResult",
    "count_runs",
    "Replay",
    "interpret",
    "plot_results",
    "replay_store",
    "results_table",
    "run_model_arms",
    "run_replay_arms",
    "shape_for",
]
