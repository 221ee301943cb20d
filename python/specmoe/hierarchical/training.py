"""Training of the experts, one after another; what is finished is left alone and what is not goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..training.tuning import TuneResult, TuneSettings, tune
from .loops import with_loops
from .objective import with_objective
from .plan import Plan
from .presets import AVERSE
from .workspace import Workspace


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
        learning_rate=size.learning_rate,
        weight_decay=size.weight_decay,
        eval_every=max(1, steps // size.evaluations),
        save_every=max(1, steps // (2 * size.evaluations)),
        patience=size.patience,
        seed=plan.seed,
        precision=size.precision,
    )


def to_learn(workspace: Workspace, domain: str, network: Any, train: Any) -> tuple[Any, Any, Any]:
    """Returns the network with its objective, the tokenizer, and what the network learns from."""
    size = workspace.plan.size
    weight = size.aversion if domain in AVERSE else 0.0
    if weight > 0:
        train = with_loops(train, size.context, workspace.plan.seed)
    return with_objective(network, weight), workspace.tokenizer, train


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
    records = workspace.records(domain)
    train = workspace.encoded(records["train"])
    result = tune(
        *to_learn(workspace, domain, workspace.untrained(domain), train),
        workspace.encoded(records["validation"]),
        workspace.folder(domain),
        tune_settings(workspace.plan, domain),
        resume=True,
        title=f"{domain} expert, {len(train):,} records",
        progress=progress,
    )
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
