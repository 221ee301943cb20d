"""The demo on experts of a real model's size, driven by recorded routes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from specmoe.offload.bench import count_runs, replay_store, run_replay_arms, shape_for
from specmoe.offload.bench.replay import WARM_TOKENS, arms_that_fit, seconds_per_load
from specmoe.offload.budget import format_bytes, parse_bytes
from specmoe.offload.engine import slots_within
from specmoe.offload.locations import cache_dir
from specmoe.speculation import RouteTrace, load_routes

from .screen import Screen
from .subject import recorded_trace, trained_model

TRACE_FILE = "gptoss20b_routes.npz"
# What the arms may take together; the rounds are cut to fit.
SECONDS = 75.0
ROUNDS = 3
HELD_OUT = 0.25


def demo_replaying(trace: Path | None, size: str, memory: str, tokens: int | None, keep: bool, plot: Path) -> None:
    """Write a store of random experts, drive it by recorded routes with every arm, and report.

    Args:
        trace: a trace file; None for one in $MOE_DATA_DIR, or else the demo model's own routes.
        size: bytes of all experts together.
        memory: budget; a percentage is of the experts' bytes.
        tokens: tokens of a round; None for as many as the disk allows in the time.
        keep: leave the store in the cache folder.
        plot: the PNG to write.

    Raises:
        ValueError: the trace cannot be read, or a size does not fit.
        StoreError: the disk is too small.
    """
    screen = Screen()
    folder = cache_dir()
    screen.say(f"cache: {folder} (SPECMOE_CACHE moves it)")
    routes, name = _routes(trace, folder, screen)
    plan = shape_for(routes, parse_bytes(size, argument="--size"))
    routes = routes.layers(plan.first_layer, plan.layers)
    known, held_out = routes.split(HELD_OUT)
    experts = plan.layers * plan.num_experts
    screen.say(
        f"replay: {name}, layers {plan.first_layer} to {plan.first_layer + plan.layers - 1}: {len(known)} sequences to "
        f"learn from, {len(held_out)} others to replay; {experts} random experts of {plan.model}'s size "
        f"({format_bytes(plan.expert_bytes)} each, {format_bytes(plan.total_bytes)} in all)"
    )
    with screen.progress(experts, "experts") as step:
        store, found = replay_store(plan, folder, lambda done, total: step(""))
    try:
        kept = "kept for the next time" if keep else "removed afterwards"
        screen.say(
            f"store: {'using' if found else 'wrote'} {store.path} ({format_bytes(store.file.size)}, {kept}), "
            f"read {store.file.mode}"
        )
        budget = parse_bytes(memory, whole=store.layout.expert_bytes, argument="--memory")
        slots = slots_within(budget, store, plan.top_k)
        load = seconds_per_load(store)
        rounds = _rounds(held_out, tokens or _affordable(load * plan.layers * plan.top_k))
        screen.say(
            f"memory for {slots} experts ({format_bytes(slots * store.layout.blob_bytes)}); reading one takes "
            f"{1e3 * load:.1f} ms; {len(rounds)} rounds of {len(rounds[0])} tokens, the first "
            f"{min(WARM_TOKENS, len(rounds[0]) // 2)} of each not counted"
        )
        arms = arms_that_fit(store)
        if not arms[0].resident:
            screen.say("all resident: left out, since the experts do not fit into the free memory")
        with screen.progress(count_runs(arms, len(rounds)), "replaying") as step:
            results = run_replay_arms(plan, store, slots, known, rounds, arms=arms, progress=step)
        title = (
            f"{name}: {plan.layers} layers, {plan.top_k} of {plan.num_experts} experts of {plan.model}'s size; "
            f"memory for {slots} of {experts}"
        )
        screen.report(results, title, store.file.mode, plot)
    finally:
        store.close()
        if not keep:
            store.path.unlink(missing_ok=True)


def _routes(trace: Path | None, folder: Path, screen: Screen) -> tuple[RouteTrace, str]:
    if trace is not None:
        return load_routes(trace), trace.name
    data = os.environ.get("MOE_DATA_DIR")
    if data and (Path(data) / TRACE_FILE).is_file():
        return load_routes(Path(data) / TRACE_FILE), "routes of GPT-OSS-20B"
    return recorded_trace(trained_model(folder, screen.say)), "routes of the demo's own model"


def _affordable(seconds_per_token: float) -> int:
    """Return how many tokens a round may have, given the seconds per token of the arm without a cache.

    That one runs in one round; the others together take about twice as long, in every round.
    """
    return min(max(int(SECONDS / ((1 + 2 * ROUNDS) * seconds_per_token)), 3 * WARM_TOKENS), 256)


def _rounds(held_out: RouteTrace, tokens: int) -> list[np.ndarray]:
    """Return rounds of equal length; each begins with another held-out sequence and goes on with the next ones."""
    rounds = []
    for number in range(ROUNDS):
        begin = int(held_out.starts[number * len(held_out) // ROUNDS])
        rounds.append(np.roll(held_out.experts, -begin, axis=0)[:tokens])
    return rounds
