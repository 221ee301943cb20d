"""The demo's subject: a small model trained on the prose that every Python carries, and a predictor of its routes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specmoe.speculation import RouteTrace, load_routes, record_trace, save_routes
from specmoe.speculation.fused import FusedSettings, FusedWeights, train_fused
from specmoe.training import CheckpointError, TrainSettings, train

# More experts than the training preset has, so that a cache has something to choose from.
SETTINGS: dict[str, Any] = {
    "dataset": "pydoc",
    "hidden_size": 192,
    "num_layers": 4,
    "num_heads": 3,
    "expert_size": 384,
    "num_experts": 16,
    "top_k": 2,
    "block_size": 128,
    "batch_size": 16,
    "steps": 250,
    "warmup_steps": 25,
    "learning_rate": 3e-3,
    "eval_every": 250,
    "log_every": 50,
    "sample_tokens": 0,
    "device": "cpu",
}
TRACE_WINDOWS = 64
# Of the demo's predictor: as small as its model.
PREDICTOR: dict[str, Any] = {"width": 48, "hidden": 48, "token_width": 16, "window": 64, "batch_size": 256, "epochs": 4}


def trained_model(folder: Path, say: Callable[[str], None]) -> Path:
    """Return the directory of the demo's model: the one in `folder`, or a new one.

    An interrupted training is continued; a damaged one is begun again.
    """
    key = hashlib.sha256(json.dumps(SETTINGS, sort_keys=True).encode()).hexdigest()[:12]
    run = folder / f"demo-{key}"
    model = run / "model"
    if (model / "config.json").is_file():
        say(f"model: using the one trained before, in {model}")
        return model
    say(f"model: training a small one on Python's own documentation, into {run} (once)")
    if (run / "checkpoints").exists():
        try:
            return train(TrainSettings(output_dir=run, resume=True, **SETTINGS)).model_dir
        except CheckpointError as error:
            say(f"model: beginning again: {error}")
            shutil.rmtree(run)
    return train(TrainSettings(output_dir=run, **SETTINGS)).model_dir


def load_model(model_dir: Path) -> tuple[Any, Any]:
    """Return a trained model, ready to generate, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import specmoe.transformer  # noqa: F401  (registers the architecture)
    from specmoe.training.run_state import quiet_progress_bars

    with quiet_progress_bars():
        return AutoModelForCausalLM.from_pretrained(model_dir).eval(), AutoTokenizer.from_pretrained(model_dir)


@torch.no_grad()
def recorded_trace(model_dir: Path) -> RouteTrace:
    """Return the routes of the demo's model over pieces of text, recorded once; a sequence is one piece."""
    from specmoe.training.corpus import load_text

    path = model_dir.parent / "routes.npz"
    if path.is_file() and (trace := load_routes(path)).tokens is not None:
        return trace
    model, tokenizer = load_model(model_dir)
    size = model.config.max_position_embeddings
    text = load_text("pydoc")
    begins = np.linspace(0, len(text) - size, TRACE_WINDOWS).astype(int)
    pieces = [tokenizer(text[n : n + size], return_tensors="pt", return_token_type_ids=False) for n in begins]
    trace = record_trace(model, [piece.input_ids for piece in pieces])
    save_routes(trace, path)
    return trace


def trained_predictor(model_dir: Path, say: Callable[[str], None]) -> Path:
    """Return the file of a fused predictor for the demo's model, trained on its routes the first time."""
    path = model_dir.parent / "predictor.npz"
    if path.is_file():
        try:
            FusedWeights.load(path)
        except ValueError as error:
            say(f"predictor: training it again: {error}")
        else:
            say(f"predictor: using the one trained before, {path}")
            return path
    trace = recorded_trace(model_dir)
    say(f"predictor: training a small one on {len(trace.experts)} tokens that the model routed (once)")
    begin = time.perf_counter()
    weights = train_fused(trace, FusedSettings(**PREDICTOR))
    weights.save(path)
    say(f"predictor: {weights.parameters:,} parameters, {time.perf_counter() - begin:.1f} s")
    return path
