"""The arms on a checkpoint that generates text, its experts on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specmoe.speculation import Oracle, Predictor

from ..engine import Offload, record_routes
from ..store import drop_cached_pages
from .arms import LRU_ARM, MODEL_ARMS, Arm, ArmResult, CacheMeter, interleaved
from .mapped import MappedFile
from .model import generate
from .policies import policy_of

OFFLOADED_ARMS = tuple(arm for arm in MODEL_ARMS if not arm.resident)


def run_checkpoint_arms(
    engine: Offload,
    prompts: Sequence[Tensor],
    new_tokens: int,
    *,
    arms: Sequence[Arm] = OFFLOADED_ARMS,
    resident: Any = None,
    predictor: Callable[[], Predictor] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[ArmResult]:
    """Generate from every prompt with every arm, a cold cache each time.

    Args:
        engine: an offloaded checkpoint.
        prompts: token ids (1, S); each is one round.
        new_tokens: tokens to generate.
        arms: the arms to run; those that are resident need `resident`.
        resident: the same model with its experts in memory; its outputs are then what the others' are compared with,
            otherwise those of a first run are.
        predictor: makes what the arms that predict ask; None for the engine's default.
        progress: called with the arm's name before each run.
    """
    experts, file = engine.blocks[0].num_experts, engine.store.file
    mapped = MappedFile(engine.store.path) if any(arm.mapped for arm in arms) else None
    read_into = file.read_into
    expected, routes = [], []
    engine.configure(None, policy=policy_of(LRU_ARM, None, 0))
    for prompt in prompts:
        with record_routes(engine.model) as passes:
            expected.append(generate(engine.model if resident is None else resident, prompt, new_tokens))
            if resident is not None:
                generate(engine.model, prompt, new_tokens)
        routes.append(passes)
    results = {arm.name: ArmResult(arm) for arm in arms}
    for number, arm in interleaved(arms, len(prompts)):
        if progress is not None:
            progress(arm.name)
        if not arm.resident:
            guess: Predictor | str | None = arm.guess
            if arm.guess == "predicted":
                guess = "adaptive" if predictor is None else predictor()
            elif arm.guess == "oracle":
                guess = Oracle(routes[number], experts)
            engine.configure(guess, gated=arm.gated, keep=arm.keep, policy=policy_of(arm, None, engine.tier.slots))
            if arm.mapped and mapped is not None:
                mapped.forget()
            elif file.mode != "direct":
                drop_cached_pages(engine.store.path)
        try:
            if arm.mapped and mapped is not None:
                file.read_into = mapped.read_into  # type: ignore[method-assign]
            meter = CacheMeter("memory map" if arm.mapped else file.mode)
            begin = time.perf_counter()
            ids, logits = generate(resident if arm.resident else engine.model, prompts[number], new_tokens)
            seconds = time.perf_counter() - begin
            stats = engine.tier.settle()
        finally:
            file.read_into = read_into  # type: ignore[method-assign]
        cached = meter.served(stats.loads * engine.store.layout.stored_bytes)
        equal = torch.equal(ids, expected[number][0]) and torch.equal(logits, expected[number][1])
        results[arm.name].add(new_tokens, seconds, stats, equal, cached)
    return list(results.values())
