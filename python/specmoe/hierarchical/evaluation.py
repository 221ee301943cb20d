"""What the experts can do, on records that none of them has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..routing import Route
from ..training.data import DOMAINS, Record, is_right, messages_of
from ..training.evaluate import perplexity
from ..training.text_metrics import TextMetrics, equal_lengths, text_metrics, words_of
from .decoding import Decoding
from .generation import Answer, generate
from .losses import mean_loss, mixed_loss, token_log_probs
from .mixture import mixing_weights
from .workspace import Workspace

# Prompts that are answered at once.
_BATCH = 50


@dataclass(frozen=True)
class Generated:
    """Answers to a domain's held-out prompts.

    Attributes:
        texts: their figures, each cut to the length of its record's completion where that is shorter.
        data: figures of those completions, cut likewise.
        stop_rate: share of the answers that ended by themselves.
        accuracy: share of right answers; None where answers cannot be checked.
        samples: some prompts with their answers.
    """

    texts: TextMetrics
    data: TextMetrics
    stop_rate: float
    accuracy: float | None
    samples: list[tuple[str, str]]

    @property
    def excess_repeats(self) -> float:
        """How much more often the answers repeat four words than the data does, as a difference of shares."""
        return self.texts.repeat_4 - self.data.repeat_4


@dataclass(frozen=True)
class Report:
    """All figures.

    Attributes:
        losses: of each expert (first key) in each domain, nats per token.
        routed: of the routed system in each domain.
        routed_without_update: the same with the router's weights at every token.
        router_accuracy: share of held-out prompts whose likeliest domain is right.
        tokens: held-out tokens of each domain.
        generated: by decoding ("default", "greedy") and domain.
    """

    losses: dict[str, dict[str, float]]
    routed: dict[str, float]
    routed_without_update: dict[str, float]
    router_accuracy: dict[str, float]
    tokens: dict[str, int]
    generated: dict[str, dict[str, Generated]]

    @property
    def right_expert(self) -> dict[str, float]:
        """The loss of always choosing the right expert, by domain."""
        return {domain: self.losses[domain][domain] for domain in self.routed}

    def mean(self, losses: Mapping[str, float]) -> float:
        """Returns the mean of a loss over the domains."""
        return sum(losses.values()) / len(losses)

    @property
    def routing_cost(self) -> float:
        """How much the routed system's mean loss exceeds that of the right experts, as a share of the latter."""
        return self.mean(self.routed) / self.mean(self.right_expert) - 1

    def as_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            **dataclasses.asdict(self),
            "perplexity": {domain: perplexity(loss) for domain, loss in self.right_expert.items()},
            "routing_cost": self.routing_cost,
        }


def evaluate(
    workspace: Workspace,
    prompts: int = 100,
    decoding: Decoding | None = None,
    top: int = 2,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Returns the figures of all experts on the test side of each domain.

    Args:
        workspace: the folder of experts.
        prompts: how many prompts of a domain are answered, with each decoding; 0 for none.
        decoding: the default decoding; None for the defaults.
        top: the most experts that are mixed.
        tell: receives a line for what is done next.

    Raises:
        CheckpointError: an expert is missing or damaged.
    """
    experts = workspace.experts()
    pad_id = workspace.tokenizer.pad_token_id
    losses: dict[str, dict[str, float]] = {name: {} for name in experts}
    routed, plainly, accuracy, tokens = {}, {}, {}, {}
    ways = {"default": decoding or Decoding(), "greedy": dataclasses.replace(decoding or Decoding(), temperature=0.0)}
    generated: dict[str, dict[str, Generated]] = {way: {} for way in ways} if prompts else {}
    for domain in DOMAINS:
        tell(f"{domain}: held-out losses")
        rows = workspace.encoded(workspace.records(domain)["test"])
        records = [workspace.records(domain)["test"][row] for row in rows["row"]]
        found = {name: token_log_probs(expert, rows, pad_id) for name, expert in experts.items()}
        for name, of in found.items():
            losses[name][domain] = mean_loss(of)
        routes = [workspace.router.route(record.prompt) for record in records]
        weights = mixing_weights(routes, list(experts), top)
        routed[domain] = mixed_loss(found, weights.numpy())
        plainly[domain] = mixed_loss(found, weights.numpy(), update=False)
        accuracy[domain] = float(np.mean([_likeliest(route) == domain for route in routes]))
        tokens[domain] = sum(map(len, found[domain]))
        for way, how in ways.items() if prompts else ():
            tell(f"{domain}: answers, {way} decoding")
            answers = answer(experts, workspace.tokenizer, records[:prompts], weights[:prompts], how)
            generated[way][domain] = judged(records[:prompts], answers)
    return Report(losses, routed, plainly, accuracy, tokens, generated)


def answer(
    experts: Mapping[str, Any], tokenizer: Any, records: Sequence[Record], weights: torch.Tensor, decoding: Decoding
) -> list[Answer]:
    """Returns answers to the prompts of records, in batches."""
    answers: list[Answer] = []
    for start in range(0, len(records), _BATCH):
        messages = [messages_of(record) for record in records[start : start + _BATCH]]
        how = dataclasses.replace(decoding, seed=decoding.seed + start)
        answers += generate(experts, tokenizer, messages, weights[start : start + _BATCH], how)
    return answers


def judged(records: Sequence[Record], answers: Sequence[Answer], samples: int = 5) -> Generated:
    """Returns the figures of answers.

    Args:
        records: what was asked, with the completions that are wanted.
        answers: one for each.
        samples: how many are kept to be read.
    """
    said, wanted = equal_lengths(
        [words_of(answer.text) for answer in answers], [words_of(record.completion) for record in records]
    )
    checked = [
        is_right(answer.text, record.answer) for record, answer in zip(records, answers, strict=True) if record.answer
    ]
    return Generated(
        texts=text_metrics(said),
        data=text_metrics(wanted),
        stop_rate=sum(answer.stopped for answer in answers) / len(answers),
        accuracy=sum(checked) / len(checked) if checked else None,
        samples=[(record.prompt, answer.text) for record, answer in zip(records, answers, strict=True)][:samples],
    )


def _likeliest(route: Route) -> str:
    return max(route.probabilities, key=route.probabilities.__getitem__)
