"""Training of the fused predictor.

Letters: B tokens of a batch, N tokens, L layers, E experts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..traces import RouteTrace
from .batch import Signals, make_signals, rank_weights
from .network import FusedNetwork, KeepNetwork
from .settings import FusedSettings
from .weights import FusedWeights

# Of the prompts, for the calibration; they are not trained on.
CALIBRATION_SHARE = 0.05
# The scores for eviction are learned sooner than the rest: they see one batch in so many.
KEEP_EVERY = 3


@dataclass(frozen=True)
class Progress:
    """What training says while it runs.

    Args:
        stage: what is being done.
        epoch, epochs: how far it is.
        loss: the mean of the epoch; NaN before the first.
        seconds: since it began.
    """

    stage: str
    epoch: int
    epochs: int
    loss: float
    seconds: float


def train_fused(
    trace: RouteTrace,
    settings: FusedSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FusedWeights:
    """Train the fused predictor on a trace. On CPU in bfloat16, which the loss is never summed in.

    Args:
        trace: routes of at least two sequences; with token ids and weights where there are any.
        settings: sizes and schedule.
        progress: called at each stage and epoch.

    Raises:
        ValueError: too few sequences, or a setting that is none.
    """
    settings = settings or FusedSettings()
    begin = time.perf_counter()

    def say(stage: str, epoch: int = 0, loss: float = math.nan) -> None:
        if progress is not None:
            progress(Progress(stage, epoch, settings.epochs, loss, time.perf_counter() - begin))

    if len(trace) < 2:
        raise ValueError(f"train_fused: trace: expected at least 2 sequences, got {len(trace)}")
    training, calibration = _parts(trace, settings.seed)
    known = np.unique(trace.tokens[training]) if trace.tokens is not None else np.zeros(0, dtype=np.int64)
    signals = make_signals(trace, rows_of(known, trace.tokens, len(trace.experts)), settings, say)
    L, E = trace.experts.shape[1], trace.num_experts
    torch.manual_seed(settings.seed)
    network = FusedNetwork(L, E, len(known), settings)
    keep = KeepNetwork(L, E, signals.after.shape[2])
    heaviest = torch.from_numpy(np.minimum(trace.experts[:, :, 0], E - 1).astype(np.int64))
    for epoch, loss in enumerate(_epochs(network, keep, signals, heaviest, training, settings), start=1):
        say("training", epoch, loss)
    say("calibrating", settings.epochs)
    scale = _calibrated(network, signals, calibration)
    return _folded(network, keep, settings, trace, known, scale)


def rows_of(known: np.ndarray, tokens: np.ndarray | None, count: int) -> np.ndarray:
    """Return (N,) rows of the embedding for token ids: 1 + the place among the known ones, 0 for others."""
    if tokens is None or not len(known):
        return np.zeros(count, dtype=np.int64)
    at = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
    return np.where(known[at] == tokens, at + 1, 0)


def _parts(trace: RouteTrace, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens to train on and those to calibrate with, whole sequences each."""
    order = np.random.default_rng(seed).permutation(len(trace))
    count = max(1, round(CALIBRATION_SHARE * len(trace)))

    def tokens(sequences: np.ndarray) -> np.ndarray:
        return np.concatenate([np.arange(trace.starts[i], trace.starts[i + 1]) for i in np.sort(sequences)])

    return tokens(order[count:]), tokens(order[:count])


def _inputs(signals: Signals, rows: Tensor) -> tuple[Tensor, ...]:
    before = (rows - 1).clamp(min=0)
    follows = signals.follows[rows]
    previous = signals.routed[before] * follows[:, None, None]
    return (
        signals.routed[rows],
        previous,
        signals.averages[rows],
        signals.votes[rows],
        signals.tokens[rows],
        signals.tokens[before] * follows,
    )


def _hidden(inputs: tuple[Tensor, ...], settings: FusedSettings) -> tuple[Tensor, ...]:
    """Hide layers of each signal, and tokens, at random."""
    B, L = inputs[0].shape[:2]
    shown = [x * (torch.rand(B, L, 1) >= settings.drop).to(x.dtype) for x in inputs[:4]]
    return (*shown, *(t * (torch.rand(B) >= settings.token_drop) for t in inputs[4:]))


def _epochs(
    network: FusedNetwork,
    keep: KeepNetwork,
    signals: Signals,
    heaviest: Tensor,
    training: np.ndarray,
    settings: FusedSettings,
) -> Iterator[float]:
    """Train, yielding each epoch's mean loss."""
    E = network.experts
    batch = min(settings.batch_size, len(training))
    steps, step = settings.epochs * (len(training) // batch), 0
    tables = [p for name, p in network.named_parameters() if name.startswith("token")]
    others = [p for name, p in network.named_parameters() if not name.startswith("token")]
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW(
        [
            {"params": [*others, *keep.parameters()], "weight_decay": decay},
            {"params": tables, "weight_decay": 5 * decay},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        order, total = torch.from_numpy(rng.permutation(training)), 0.0
        for rows in order[: len(order) // batch * batch].split(batch):
            warm = min(1.0, (step + 1) / 100)
            rate = settings.learning_rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            inputs = _inputs(signals, rows)
            scores = network(*_hidden(inputs, settings), dtype=torch.bfloat16)
            loss = _loss(scores, inputs[0], heaviest[rows], E)
            optimizer.zero_grad()
            loss.backward()
            if step % KEEP_EVERY == 0:
                near = signals.nearness[rows].float()
                F.binary_cross_entropy_with_logits(keep(signals.after[rows]), near).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
            total += float(loss.detach())
        yield total / max(1, len(training) // batch)


def _loss(scores: Tensor, routed: Tensor, heaviest: Tensor, E: int) -> Tensor:
    """Cross-entropy of use, expert by expert; of the weights, as a distribution; and of the heaviest expert."""
    use, weights = routed[..., :E].float(), routed[..., E:].float() / 4.0
    log_p = F.log_softmax(scores[..., E:], dim=-1)
    of_use = F.binary_cross_entropy_with_logits(scores[..., :E], use) * E / 4
    of_weights = -(log_p * weights).sum(-1).mean()
    of_heaviest = F.nll_loss(log_p.flatten(0, 1), heaviest.flatten())
    return of_use + 0.5 * of_weights + 0.5 * of_heaviest


@torch.no_grad()
def scores_of(network: FusedNetwork, signals: Signals, rows: np.ndarray, batch: int = 1024) -> Tensor:
    """Return scores (len(rows), L, 2E) without anything hidden."""
    parts = torch.from_numpy(rows).split(batch)
    return torch.cat([network(*_inputs(signals, part), dtype=torch.bfloat16) for part in parts])


def _calibrated(network: FusedNetwork, signals: Signals, rows: np.ndarray) -> Tensor:
    """Return (L,): the factor that makes each layer's scores of use fit best on prompts that were not trained on."""
    E = network.experts
    scores, use = scores_of(network, signals, rows)[..., :E], signals.routed[torch.from_numpy(rows)][..., :E].float()
    log_scale = torch.zeros(network.layers, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=30)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(scores * log_scale.exp()[:, None], use)
        value.backward()
        return value

    optimizer.step(loss)
    return log_scale.detach().exp()


def _folded(
    network: FusedNetwork,
    keep: KeepNetwork,
    settings: FusedSettings,
    trace: RouteTrace,
    known: np.ndarray,
    scale: Tensor,
) -> FusedWeights:
    """Bring the weights into the layout that asking wants."""
    L, E, W = network.layers, network.experts, settings.width
    use = network.use

    def array(values: Tensor) -> np.ndarray:
        return np.ascontiguousarray(values.detach().float().numpy())

    def stacked(values: nn.ParameterList) -> np.ndarray:
        return array(torch.stack([v.detach() for v in values]))

    enter, plain = stacked(network.enter), stacked(network.plain)
    averages = plain.shape[1] - 4 * E
    links = np.zeros((L, 2 * E, L, 2 * E), dtype=np.float32)
    for n in range(1, L):
        first = max(0, n - settings.context) if settings.context else 0
        links[first:n, :, n] = array(network.links[n]).reshape(n, 2 * E, 2 * E)[first:]
    return FusedWeights(
        settings=replace(settings),
        top_k=trace.experts.shape[2],
        known=known.astype(np.int64),
        ranks=rank_weights(trace).astype(np.float32),
        token=array(network.token.weight),
        from_token=array(network.from_token) * use["token"],
        from_past=array(network.from_past).reshape(L, 2 * E, W) * use["previous"],
        enter_path=enter[:, : 2 * E] * use["path"],
        enter_previous=enter[:, 2 * E : 4 * E] * use["previous"],
        enter_votes=enter[:, 4 * E :] * use["similar"],
        up=(1 + stacked(network.norm_up))[:, :, None] * stacked(network.up),
        up_bias=stacked(network.up_bias),
        down=stacked(network.down),
        out=(1 + stacked(network.norm_out))[:, :, None] * stacked(network.out),
        bias=array(network.bias),
        links=links * use["links"],
        plain_previous=plain[:, : 2 * E] * use["previous"],
        plain_averages=plain[:, 2 * E : 2 * E + averages] * use["averages"],
        plain_votes=plain[:, 2 * E + averages :] * use["similar"],
        scale=array(scale),
        keep_plain=array(keep.plain),
        keep_up=array(keep.up),
        keep_down=array(keep.down),
        keep_bias=array(keep.bias[:, 0]),
    )
