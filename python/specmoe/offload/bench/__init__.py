"""Comparing ways to fill the cache on the same bytes, slots, prompts and kernels."""

from __future__ import annotations

from .arms import ARMS, MODEL_ARMS, REPLAY_ARMS, Arm, ArmResult, count_runs
from .end_to_end import run_checkpoint_arms
from .model import run_model_arms
from .plot import plot_results
from .replay import Replay, replay_store, run_replay_arms, shape_for
from .report import measured_rows, plot_sweep, sweep_tables, write_json
from .summary import interpret, results_table
from .sweep import eviction_shares, sweep

__all__ = [
    "ARMS",
    "MODEL_ARMS",
    "REPLAY_ARMS",
    "Arm",
    "ArmResult",
    "count_runs",
    "Replay",
    "eviction_shares",
    "interpret",
    "measured_rows",
    "plot_results",
    "plot_sweep",
    "replay_store",
    "results_table",
    "run_checkpoint_arms",
    "run_model_arms",
    "run_replay_arms",
    "shape_for",
    "sweep",
    "sweep_tables",
    "write_json",
]
