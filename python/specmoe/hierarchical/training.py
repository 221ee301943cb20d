"""Training of the experts, one after another; what is finished is left alone and what is not goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..training.tuning import TuneResult, TuneSettings, shards_of, tune
from .loops import with_loops
from .objective import with_objective
from .own_loops import own_loops
from .plan import Plan
from .presets import AVERSE, AVERSE_SHARE
from .workspace import Workspace

# Inside the folder of an expert that is averse to loops: its training before that.
PLAIN_DIR = "plain"


@dataclass(frozen=True)
class ExpertResult:
    """What the training of one expert came to.

    Attributes:
        domain: the expert.
        result: of its run; None where it was finished before.
        records: how many it learned from.
    """

    domain: str
    result: TuneResult | None
    records: int = 0


def tune_settings(plan: Plan, domain: str) -> TuneSettings:
    """Returns how an expert is trained."""
    size, steps = plan.size, plan.steps_of(domain)
    return TuneSettings(
        steps=steps,
        batch_size=size.batch_size,
        shards=shards_of(size.batch_size),
        learning_rate=size.learning_rate,
        weight_decay=size.weight_decay,
        eval_every=max(1, steps // size.evaluations),
        save_every=max(1, steps // (2 * size.evaluations)),
        patience=size.patience,
        seed=plan.seed,
        precision=size.precision,
    )


def averse_settings(plan: Plan, domain: str) -> TuneSettings:
    """Returns how an expert then learns not to loop: evaluated once, so that its last step is what is kept."""
    usual = tune_settings(plan, domain)
    steps = max(1, round(usual.steps * AVERSE_SHARE))
    return dataclasses.replace(usual, steps=steps, eval_every=steps, save_every=max(1, steps // 6))


def to_learn(workspace: Workspace, domain: str, network: Any, train: Any) -> tuple[Any, Any, Any]:
    """Returns a trained network with its objective, the tokenizer, and what the network learns from."""
    plan, size = workspace.plan, workspace.plan.size
    if domain not in AVERSE:
        return with_objective(network, 0.0), workspace.tokenizer, train
    from datasets import concatenate_datasets

    looped = with_loops(train, size.context, plan.seed)
    own = own_loops(network, train, size.context, plan.seed)
    return with_objective(network, size.aversion), workspace.tokenizer, concatenate_datasets([looped, own])


def train_expert(workspace: Workspace, domain: str, progress: bool | None = None) -> ExpertResult:
    """Trains one expert, from the start or from its last checkpoint on.

    Args:
        workspace: the folder of experts.
        domain: which one.
        progress: show a bar; None shows one on a terminal.

    Raises:
        DataError: no usable records.
        CheckpointError: the last checkpoint is damaged or of another plan, or one could not be written.
        TrainingInterrupted: Ctrl-C; the state is saved.
    """
    if workspace.finished(domain):
        return ExpertResult(domain, None)
    plan, folder = workspace.plan, workspace.folder(domain)
    train, validation = (workspace.encoded(workspace.records(domain)[side]) for side in ("train", "validation"))
    averse = domain in AVERSE
    if not averse or not workspace.finished(domain, PLAIN_DIR):
        network = with_objective(workspace.untrained(domain), 0.0)
        result = tune(
            network, workspace.tokenizer, train, validation, folder / PLAIN_DIR if averse else folder,
            tune_settings(plan, domain), resume=True, title=f"{domain} expert, {len(train):,} records",
            progress=progress,
        )  # fmt: skip
    if averse:
        network = workspace.expert(domain, PLAIN_DIR)
        result = tune(
            *to_learn(workspace, domain, network, train), validation, folder, averse_settings(plan, domain),
            resume=True, title=f"{domain} expert, not to loop", progress=progress,
        )  # fmt: skip
    return ExpertResult(domain, result, len(train))


def train_experts(
    workspace: Workspace, domains: Iterable[str], tell: Callable[[str], None], progress: bool | None = None
) -> list[ExpertResult]:
    """Trains experts in turn.

    Args:
        workspace: the folder of experts.
        domains: which ones.
        tell: receives a line before and after each.
        progress: show bars; None shows them on a terminal.

    Raises:
        TrainingInterrupted: Ctrl-C; the state is saved, and another call goes on there.
        DataError, CheckpointError: as `train_expert`; what was finished before stays.
    """
    results = []
    for domain in domains:
        tell(f"{domain}: in {workspace.folder(domain)}")
        results.append(train_expert(workspace, domain, progress))
        done = results[-1].result
        if done is None:
            tell(f"{domain}: trained before, left as it is")
        else:
            tell(
                f"{domain}: validation loss {done.validation_loss:.4f} nats, perplexity {done.perplexity:.2f} "
                f"(step {done.best_step} of {done.steps}{', plateau' if done.stopped_early else ''}) "
                f"on {results[-1].records:,} records in {done.seconds:.0f} s"
            )
    return results
