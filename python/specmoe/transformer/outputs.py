"""What the MoE transformer returns.

Letters: T tokens, E experts, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


@dataclass
class SpecMoeModelOutput(ModelOutput):
    """Output of `SpecMoeModel`.

    Args:
        last_hidden_state: (batch, sequence, H), after the final norm.
        past_key_values: the cache, when one is used.
        hidden_states: L + 1 tensors (batch, sequence, H), the embeddings and each block's output, when asked for.
        load_balance: scalar, the mean over the layers of `E * sum_e f_e * P_e`; this and what follows is None unless
            router statistics were asked for.
        z_loss: scalar, the mean over the layers of the tokens' mean squared logsumexp of router logits.
        entropy: scalar in nats, the mean over the layers of the router's entropy.
        expert_counts: (L, E) float32, how many of the counted tokens each expert served.
        router_logits: L tensors (T, E).
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    load_balance: torch.Tensor | None = None
    z_loss: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    expert_counts: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None


@dataclass
class SpecMoeCausalLMOutput(ModelOutput):
    """Output of `SpecMoeForCausalLM`; the terms of the loss are reported next to it.

    Args:
        loss: scalar, `cross_entropy + w_lb * load_balance + w_z * z_loss - w_H * entropy`, when labels were given.
        logits: (batch, sequence, vocab).
        cross_entropy: scalar in nats per counted token, when labels were given.
        past_key_values, hidden_states, load_balance, z_loss, entropy, expert_counts, router_logits: as in
            `SpecMoeModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    cross_entropy: torch.Tensor | None = None
    load_balance: torch.Tensor | None = None
    z_loss: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    expert_counts: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
