"""The arms on a model that generates text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specmoe.speculation import Oracle, Predictor

from ..engine import Offload, record_routes
from ..stats import TransferStats
from ..store import drop_cached_pages
from .arms import ARMS, Arm, ArmResult, CacheMeter, interleaved
from .policies import policy_of


def generate(model: Any, prompt: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
    """Generate greedily.

    Returns:
        The token ids (1, S + new_tokens) and the logits of the new ones (new_tokens, V).
    """
    output = model.generate(
        prompt,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences, torch.cat(output.logits)


def run_model_arms(
    resident: Any,
    offloaded: Any,
    engine: Offload,
    prompts: Sequence[Tensor],
    new_tokens: int,
    *,
    arms: Sequence[Arm] = ARMS,
    predictor: Predictor | str | Path = "adaptive",
    progress: Callable[[str], None] | None = None,
) -> list[ArmResult]:
    """Generate from every prompt with every arm, a cold cache each time.

    Args:
        resident: the model with its experts in memory.
        offloaded: the same model, offloaded to `engine`.
        engine: what serves its experts.
        prompts: token ids (1, S); each is one round.
        new_tokens: tokens to generate.
        arms: the arms to run.
        predictor: what the arms that predict ask, as `make_predictor` takes it.
        progress: called with the arm's name before each run.
    """
    expected, routes = [], []
    for prompt in prompts:
        with record_routes(resident) as passes:
            expected.append(generate(resident, prompt, new_tokens))
        routes.append(passes)
    experts = engine.blocks[0].num_experts
    generate(offloaded, prompts[0], 2)
    results = {arm.name: ArmResult(arm) for arm in arms}
    for number, arm in interleaved(arms, len(prompts)):
        if progress is not None:
            progress(arm.name)
        if not arm.resident:
            guess = {None: None, "predicted": predictor, "oracle": Oracle(routes[number], experts)}[arm.guess]
            engine.configure(guess, gated=arm.gated, keep=arm.keep, policy=policy_of(arm, None, engine.tier.slots))
            if engine.store.file.mode != "direct":
                drop_cached_pages(engine.store.path)
        meter, begin = CacheMeter(engine.store.file.mode), time.perf_counter()
        ids, logits = generate(resident if arm.resident else offloaded, prompts[number], new_tokens)
        seconds = time.perf_counter() - begin
        stats = TransferStats() if arm.resident else engine.tier.settle()
        cached = meter.served(stats.loads * engine.store.layout.stored_bytes)
        equal = torch.equal(ids, expected[number][0]) and torch.equal(logits, expected[number][1])
        results[arm.name].add(new_tokens, seconds, stats, equal, cached)
    return list(results.values())
