"""`specmoe offload bench` and `specmoe doctor`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError, reports_errors

offload = typer.Typer(help="Experts on disk: compare the ways to have them at hand.", no_args_is_help=True)
TRACE_FILE = "gptoss20b_routes.npz"
# The prompts that `specmoe predict train` leaves out as well.
HELD_OUT = 0.2


def doctor(
    model: Annotated[Path, typer.Option(help="Directory of a model.")],
    memory: Annotated[str, typer.Option(help='Budget for experts: "6GiB", or a percentage of all of them.')] = "50%",
    folder: Annotated[
        Path | None, typer.Option(help="Where the store would be. [default: the cache folder]", show_default=False)
    ] = None,
) -> None:
    """Say what to expect of this machine, a model and a budget."""
    if not model.is_dir():
        raise UsageError(f"--model: expected a directory, found none at {model}")

    from ..offload.budget import parse_bytes
    from ..offload.doctor import diagnose
    from ..offload.locations import cache_dir

    place = folder or cache_dir()
    place.mkdir(parents=True, exist_ok=True)
    found = diagnose(model, place)
    budget = parse_bytes(memory, whole=found.experts * found.expert_bytes, argument="--memory")
    for line in found.lines(budget):
        typer.echo(line)


def bench(
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint to generate with, end to end.", show_default=False)
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Routes, .npz. [default: $MOE_DATA_DIR]", show_default=False)
    ] = None,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="Only the sweep against a counting clock; no disk is read.")
    ] = False,
    size: Annotated[str, typer.Option(help="Bytes of the experts of a replay.")] = "2GiB",
    memory: Annotated[str, typer.Option(help="Budget for experts; a percentage is of all of them.")] = "25%",
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of a round.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with every arm.")] = 5,
    sweep_tokens: Annotated[int, typer.Option(min=20, help="Tokens of the sweep.")] = 200,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A fused predictor, .npz, trained on these routes. [default: one that learns while it runs]",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Where stores are. [default: the cache folder]", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON and the pictures.")] = Path("offload-bench"),
) -> None:
    """Run every arm on the same bytes, slots and routes; write a table, JSON and pictures.

    Without --model: recorded routes, on the real disk with random experts, and the emulated sweep.
    """
    if weights is not None and not weights.is_file():
        raise UsageError(f"--weights: expected a file, found none at {weights}")
    output.mkdir(parents=True, exist_ok=True)
    from ..demo.screen import Screen

    screen = Screen()
    if model is not None:
        _end_to_end(screen, model, store, memory, tokens, rounds, output)
        return
    routes, name = _routes(trace)
    known, held = routes.split(HELD_OUT)
    if not emulated:
        _replay(screen, routes, name, size, memory, tokens, rounds, store, output)
    _sweep(screen, known, held, name, sweep_tokens, output, weights)


def _routes(trace: Path | None) -> tuple[Any, str]:
    from ..speculation import load_routes

    path = trace
    if path is None:
        data = os.environ.get("MOE_DATA_DIR")
        path = Path(data) / TRACE_FILE if data else None
    if path is None or not path.is_file():
        raise UsageError(f"--trace: expected a file of routes, found {'none given' if path is None else path}")
    return load_routes(path), path.stem


def _maker(weights: Path | None) -> Any:
    """Return what makes the predictor of our arms from a trace."""
    from ..speculation import AdaptivePredictor
    from ..speculation.fused import FusedPredictor, FusedWeights

    if weights is None:
        return lambda known: AdaptivePredictor(known.experts.shape[1], known.num_experts, known.experts.shape[2])
    trained = FusedWeights.load(weights)
    return lambda known: FusedPredictor(trained)


def _sweep(
    screen: Any, known: Any, held: Any, name: str, tokens: int, output: Path, weights: Path | None = None
) -> None:
    from ..offload.bench import eviction_shares, plot_sweep, sweep, sweep_tables, write_json

    E = known.num_experts
    sizes = sorted({max(1, E * share // 32) for share in (8, 12, 16)})
    screen.say(
        f"\nemulated: {name}, {tokens} tokens of held-out prompts, a clock that counts; 1 is a layer's compute, a "
        "prediction costs 0.01 of it"
    )
    with screen.progress(7 * len(sizes), "emulating") as step:
        rows = sweep(
            known,
            held.experts[:tokens],
            slots_per_layer=sizes,
            predictor=_maker(weights),
            starts=held.starts.tolist(),
            weights=None if held.weights is None else held.weights[:tokens],
            tokens=None if held.tokens is None else held.tokens[:tokens],
            progress=step,
        )
    for title, table in sweep_tables(rows, screen.plain):
        screen.say(f"\n{title}")
        screen.table(table)
    shares = eviction_shares(rows)
    for slots, part in shares.items():
        screen.say(
            f"eviction, {slots} slots of {E}: LRU {part['lru']:.1%}, ours {part['ours']:.1%}, Belady "
            f"{part['belady']:.1%}: {part['share']:.2f} of the way"
        )
    worst = min(row["speedup"] for row in rows if row["arm"] == "ours")
    screen.say(f"ours is never slower than the baseline by more than {max(0.0, 1 - worst):.1%} in this sweep")
    content = {"kind": "emulated", "trace": name, "tokens": tokens, "rows": rows, "eviction": shares}
    write_json(output / "emulated.json", content)
    plot_sweep(rows, output / "emulated.png", f"{name}, emulated")
    screen.say(f"written: {output / 'emulated.json'}, {output / 'emulated.png'}")


def _replay(
    screen: Any,
    routes: Any,
    name: str,
    size: str,
    memory: str,
    tokens: int,
    rounds: int,
    folder: Path | None,
    output: Path,
) -> None:
    import numpy as np

    from ..offload.bench import REPLAY_ARMS, count_runs, replay_store, run_replay_arms, shape_for
    from ..offload.bench.replay import arms_that_fit
    from ..offload.budget import format_bytes, parse_bytes
    from ..offload.engine import slots_within
    from ..offload.locations import cache_dir

    plan = shape_for(routes, parse_bytes(size, argument="--size"))
    known, held = routes.layers(plan.first_layer, plan.layers).split(HELD_OUT)
    with screen.progress(plan.layers * plan.num_experts, "experts") as step:
        store, _ = replay_store(plan, folder or cache_dir(), lambda done, total: step(""))
    with store:
        budget = parse_bytes(memory, whole=store.layout.expert_bytes, argument="--memory")
        slots = slots_within(budget, store, plan.top_k)
        parts = []
        for number in range(rounds):
            begin = int(held.starts[number * len(held) // rounds])
            parts.append(np.roll(held.experts, -begin, axis=0)[:tokens])
        fitting = arms_that_fit(store)
        arms = [arm for arm in REPLAY_ARMS if not arm.resident or fitting[0].resident]
        title = (
            f"{name}: {plan.layers} layers, {plan.top_k} of {plan.num_experts} experts of {plan.model}'s size; memory "
            f"for {slots} ({format_bytes(slots * store.layout.blob_bytes)})"
        )
        with screen.progress(count_runs(arms, rounds), "replaying") as step:
            results = run_replay_arms(plan, store, slots, known, parts, arms=arms, progress=step)
        _report(screen, results, title, store, output / "replay")


def _end_to_end(
    screen: Any, model: Path, store: Path | None, memory: str, tokens: int, rounds: int, output: Path
) -> None:
    import torch

    from ..offload import build_checkpoint_store, offload
    from ..offload.bench import MODEL_ARMS, count_runs, run_checkpoint_arms
    from ..offload.budget import format_bytes, parse_bytes
    from ..offload.engine.stores import default_store
    from ..offload.store import ExpertStore
    from .progress import progress_bar

    path = store or default_store(model)
    if not path.exists():
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with progress_bar("writing experts") as step:
            build_checkpoint_store(model, path, progress=step, replace=False).close()
    with ExpertStore.open(path) as opened:
        budget = parse_bytes(memory, whole=opened.layout.expert_bytes, argument="--memory")
        begin = time.perf_counter()
        with offload(model, opened, memory=budget) as engine:
            screen.say(f"loaded everything but the experts in {time.perf_counter() - begin:.1f} s")
            vocabulary = engine.model.config.vocab_size
            generator = torch.Generator().manual_seed(0)
            prompts = [torch.randint(3, vocabulary, (1, 16), generator=generator) for _ in range(rounds)]
            arms = [arm for arm in MODEL_ARMS if not arm.resident]
            with screen.progress(count_runs(arms, rounds), "generating") as bar:
                results = run_checkpoint_arms(engine, prompts, tokens, arms=arms, progress=bar)
            title = (
                f"{model.name}: {tokens} tokens after random prompts of 16; memory for {engine.tier.slots} of "
                f"{len(opened.layout.blobs)} experts ({format_bytes(engine.tier.pool.nbytes)})"
            )
            _report(screen, results, title, opened, output / "model")


def _report(screen: Any, results: Any, title: str, store: Any, path: Path) -> None:
    from ..offload.bench import measured_rows, plot_results, results_table, write_json

    screen.say(f"\n{title}")
    screen.table(results_table(results, screen.plain))
    rows = measured_rows(results)
    for row in rows:
        if row["speedup_over_lru"] is not None:
            middle, low, high = row["speedup_over_lru"]
            screen.say(f"{row['arm']}: {middle:.3f} times LRU (95 % interval {low:.3f} to {high:.3f})")
    note = f"read {store.file.mode} by {store.file.method}; the store's pages were evicted before every run"
    write_json(path.with_suffix(".json"), {"kind": "measured", "title": title, "reads": note, "rows": rows})
    plot_results(results, title, note, path.with_suffix(".png"))
    screen.say(f"{note}; written: {path.with_suffix('.json')}, {path.with_suffix('.png')}")


offload.command()(reports_errors(bench))
