"""The demo on a model: generate the same text with every arm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from specmoe.offload.bench import ARMS, count_runs, run_model_arms
from specmoe.offload.budget import format_bytes, parse_bytes
from specmoe.offload.engine import build_model_store, moe_blocks, offload, require_same_weights
from specmoe.offload.locations import cache_dir
from specmoe.offload.store import ExpertStore, StoreError

from .screen import Screen
from .subject import load_model, trained_model, trained_predictor

PROMPTS = ("The import statement ", "A class definition ", "When an exception ")


def demo_generating(prompt: str | None, tokens: int, memory: str, keep: bool, plot: Path) -> None:
    """Train or load the demo's model, put its experts on disk, generate with every arm, and report.

    Args:
        prompt: text to continue in every round; None for three of its own.
        tokens: tokens to generate in a round.
        memory: budget; a percentage is of the experts' bytes.
        keep: leave the store in the cache folder.
        plot: the PNG to write.

    Raises:
        ValueError: the prompt has characters that the model does not know, or the budget is too small.
    """
    screen = Screen()
    folder = cache_dir()
    screen.say(f"cache: {folder} (SPECMOE_CACHE moves it)")
    model_dir = trained_model(folder, screen.say)
    predictor = trained_predictor(model_dir, screen.say)
    resident, tokenizer = load_model(model_dir)
    offloaded, _ = load_model(model_dir)
    texts = PROMPTS if prompt is None else (prompt,) * len(PROMPTS)
    prompts = [tokenizer(text, return_tensors="pt", return_token_type_ids=False).input_ids for text in texts]
    if not prompts[0].numel() or tokenizer.decode(prompts[0][0]) != texts[0]:
        raise ValueError(f"--prompt: expected characters of the model's vocabulary, got {texts[0]!r}")

    store = _model_store(offloaded, model_dir.parent / "experts.store", screen)
    needed = store.layout.expert_bytes
    try:
        budget = parse_bytes(memory, whole=needed, argument="--memory")
        with offload(offloaded, store, memory=budget, check=False) as engine:
            tier = engine.tier
            screen.say(
                f"experts: {len(store.layout.blobs)} of {format_bytes(store.layout.blob_bytes)}, "
                f"{format_bytes(needed)} in all; memory for {tier.slots} of them ({format_bytes(tier.pool.nbytes)})"
            )
            with one_thread(), screen.progress(count_runs(ARMS, len(prompts)), "generating") as step:
                results = run_model_arms(
                    resident, offloaded, engine, prompts, tokens, predictor=predictor, progress=step
                )
        sample = resident.generate(prompts[0], max_new_tokens=tokens, do_sample=False)
        screen.say(f"the model writes: {tokenizer.decode(sample[0])!r}")
        experts = len(store.layout.blobs)
        title = f"{len(prompts)} prompts, {tokens} tokens each, 1 thread; memory for {tier.slots} of {experts} experts"
        screen.report(results, title, store.file.mode, plot)
    finally:
        store.close()
        if not keep:
            store.path.unlink(missing_ok=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: a model this small gains nothing from more, and the readers need a core too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _model_store(model: Any, path: Path, screen: Screen) -> ExpertStore:
    """Open the store of the model's experts; write it where there is none, or a damaged or another model's."""
    if path.exists():
        try:
            store = ExpertStore.open(path)
        except StoreError as error:
            screen.say(f"store: writing it again: {error}")
        else:
            try:
                require_same_weights(store, moe_blocks(model))
            except StoreError as error:
                store.close()
                screen.say(f"store: writing it again: {error}")
            else:
                screen.say(f"store: using {path}, read {store.file.mode}")
                return store
    store = build_model_store(model, path, source=str(path.parent))
    screen.say(f"store: wrote {path}, read {store.file.mode}")
    return store
