"""What an expert is trained to do: to say what comes next, and not to say again what does not.

N labelled tokens, S tokens of a record, V of the vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..training.data.template import IGNORED

# A label of `AVOIDED - id`: any token but this one.
AVOIDED = -1000


def with_objective(network: Any, weight: float) -> Any:
    """Returns the network with `unlikelihood_loss` as its loss; one that is saved and loaded has its own again."""
    network.loss_function = partial(unlikelihood_loss, weight=weight)
    return network


def unlikelihood_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None, weight: float = 1.0, **unused: Any
) -> torch.Tensor:
    """Returns the cross-entropy with two unlikelihoods of Welleck et al. (2020, arXiv:1908.04319).

    To -log p of each learned token is added weight * -log(1 - p) of

    - every different token that the completion has had before and that does not come next. Greedy decoding loops
      because tokens that were just said stay likely; this makes them unlikely where the data does not repeat them, and
      leaves them alone where it does;
    - each token that is to be avoided, because a stretch would be said again with it (`loops`, `own_loops`).

    Args:
        logits: (records, S, V).
        labels: (records, S) int64, `IGNORED` where there is nothing to learn, `AVOIDED - id` where `id` is to be
            avoided.
        num_items_in_batch: what the sum is divided by; None for the number of learned tokens.
        weight: of what is added; 0 leaves the cross-entropy.

    Returns:
        A scalar in float32, nats per token.
    """
    targets_BS = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    record_N, place_N = torch.nonzero(targets_BS >= 0, as_tuple=True)
    target_N = targets_BS[record_N, place_N]
    log_p_NV = logits[record_N, place_N].float().log_softmax(dim=-1)
    loss = -log_p_NV.gather(1, target_N[:, None]).sum()
    count = len(target_N) if num_items_in_batch is None else num_items_in_batch
    if weight == 0:
        return loss / count

    said_BS = labels >= 0
    same_BSS = (labels[:, :, None] == labels[:, None, :]).tril(diagonal=-1)
    first_BS = said_BS & ~same_BSS.any(dim=2)  # a token counts once, where it was said first
    before_NS = torch.arange(labels.shape[1], device=labels.device) <= place_N[:, None]
    wrong_NS = first_BS[record_N] & before_NS & (labels[record_N] != target_N[:, None])
    p_NS = log_p_NV.gather(1, labels.clamp(min=0)[record_N]).exp()

    record_M, place_M = torch.nonzero(targets_BS <= AVOIDED, as_tuple=True)
    avoided_M = AVOIDED - targets_BS[record_M, place_M]
    p_M = logits[record_M, place_M].float().softmax(dim=-1).gather(1, avoided_M[:, None])[:, 0]
    unlikely = (_log_not(p_NS) * wrong_NS).sum() + _log_not(p_M).sum()
    return (loss - weight * unlikely) / count


def _log_not(p: torch.Tensor) -> torch.Tensor:
    # In float32 1 - p may round to 0.
    return torch.log1p(-p.clamp(max=1 - 1e-6))
