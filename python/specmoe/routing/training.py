"""Training of the linear router on records and on written phrasings, in seconds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..training.data.records import DOMAINS
from .calibration import abstention_threshold, fit_temperature
from .features import hashed_features
from .linear import LinearRouter
from .phrasings import expand, patterns

# What a router trained on four fifths of the phrasings is right in, on the others, where it does not abstain.
WANTED_PRECISION = 0.97


@dataclass(frozen=True)
class RouterSettings:
    """How the router is trained.

    Attributes:
        buckets: rows of the matrix, a power of two.
        each: fillings of a phrasing's slots.
        records: most records of a domain.
        epochs: passes over all of them.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        dropout: share of the features that is dropped from a query in training.
        smoothing: of the labels.
        seed: of everything that is drawn.
    """

    buckets: int = 1 << 17
    each: int = 8
    records: int = 2000
    epochs: int = 10
    learning_rate: float = 0.02
    weight_decay: float = 0.01
    dropout: float = 0.3
    smoothing: float = 0.02
    seed: int = 0


def train_router(
    records: Mapping[str, Sequence[str]] | None = None,
    settings: RouterSettings | None = None,
    labels: Mapping[str, str] | None = None,
) -> LinearRouter:
    """Returns a trained and calibrated router.

    The temperature and the threshold come from a router that has not seen a fifth of the phrasings, asked about those:
    on other fillings of phrasings that it knows, a router is always certain.

    Args:
        records: prompts of each domain, beside the phrasings; domains without phrasings are learned from these alone.
        settings: how to train; None for the defaults.
        labels: what the router calls the queries of each domain, such as the group that it belongs to; it never sees
            the domains that are not named here. None: all domains by their own names.

    Raises:
        ValueError: a domain has neither prompts nor phrasings.
    """
    records, settings = records or {}, settings or RouterSettings()
    labels = labels or {name: name for name in (*DOMAINS, *records)}
    known, unknown = _queries(list(labels), records, settings)
    known, unknown = ([(text, labels[domain]) for text, domain in side] for side in (known, unknown))
    domains = list(dict.fromkeys(labels.values()))
    bags = [hashed_features(text, settings.buckets) for text, _ in known + unknown]
    targets = [domains.index(domain) for _, domain in known + unknown]
    probe = _fit(bags[: len(known)], targets[: len(known)], domains, settings)
    logits = np.stack([probe.logits(bag) for bag in bags[len(known) :]])
    wanted = np.array(targets[len(known) :])
    router = _fit(bags, targets, domains, settings)
    router.temperature = fit_temperature(logits, wanted)
    odds = np.exp((logits - logits.max(axis=1, keepdims=True)) / router.temperature)
    p = odds / odds.sum(axis=1, keepdims=True)
    router.threshold = abstention_threshold(p.max(axis=1), p.argmax(axis=1) == wanted, WANTED_PRECISION)
    return router


Query = tuple[str, str]


def _queries(
    domains: Sequence[str], records: Mapping[str, Sequence[str]], settings: RouterSettings
) -> tuple[list[Query], list[Query]]:
    """Returns queries with their domains; the second list has phrasings that the first has not."""
    known: list[Query] = []
    unknown: list[Query] = []
    for domain in domains:
        draw = random.Random(f"router {settings.seed} {domain}")
        prompts = list(records.get(domain, ()))
        draw.shuffle(prompts)
        # Every twentieth record helps to calibrate too: queries as they come.
        for place, prompt in enumerate(prompts[: settings.records]):
            (unknown if place % 20 == 0 else known).append((prompt, domain))
        if domain in DOMAINS:
            held = set(draw.sample(range(len(patterns(domain))), len(patterns(domain)) // 5))
            for place, filled in expand(domain, settings.each, settings.seed):
                (unknown if place in held else known).append((filled, domain))
    if missing := [name for name in domains if not any(domain == name for _, domain in known)]:
        raise ValueError(f"train_router: expected prompts for {', '.join(missing)}, got none")
    return known, unknown


def _fit(
    bags: Sequence[np.ndarray], targets: Sequence[int], domains: Sequence[str], settings: RouterSettings
) -> LinearRouter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return _optimized([torch.from_numpy(bag) for bag in bags], torch.tensor(targets), domains, settings)


def _optimized(
    bags: Sequence[torch.Tensor], labels: torch.Tensor, domains: Sequence[str], settings: RouterSettings
) -> LinearRouter:
    # Domains with few queries count as much as those with many.
    share = torch.bincount(labels, minlength=len(domains)).float()
    loss_of = torch.nn.CrossEntropyLoss(weight=share.mean() / share, label_smoothing=settings.smoothing)
    weight = torch.zeros(settings.buckets, len(domains), requires_grad=True)
    bias = torch.zeros(len(domains), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], settings.learning_rate, weight_decay=settings.weight_decay)
    sizes = torch.tensor([len(bag) for bag in bags])
    batch = 256
    steps = settings.epochs * -(-len(bags) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(bags)).split(batch):
            features = torch.cat([bags[row] for row in rows.tolist()])
            kept = torch.rand(len(features)) >= settings.dropout
            owners = torch.repeat_interleave(torch.arange(len(rows)), sizes[rows])[kept]
            lengths = torch.bincount(owners, minlength=len(rows))
            starts = torch.cumsum(lengths, 0) - lengths
            sums = torch.nn.functional.embedding_bag(features[kept], weight, starts, mode="sum")
            logits = sums / lengths.clamp(min=1).sqrt()[:, None] + bias
            optimizer.zero_grad(set_to_none=True)
            loss_of(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return LinearRouter(weight.detach().numpy(), bias.detach().numpy(), tuple(domains))
