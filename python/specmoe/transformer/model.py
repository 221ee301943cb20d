"""The MoE transformer as transformers models: a pre-norm decoder with a Mixture-of-Experts in every block.

Letters: B batch, S positions of this call, T = B * S tokens, H hidden, E experts, L layers, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from moe_kernels.layer import Experts, Router

from .attention import ResidualLinear, attention_mask_for
from .blocks import Block, LayerNorm, RMSNorm, RouterStatistics, make_norm
from .config import SpecMoeConfig
from .outputs import SpecMoeCausalLMOutput, SpecMoeModelOutput
from .rotary import rotary_angles

IGNORED_LABEL = -100
# With embeddings of this standard deviation and a gain of 1 the untrained logits are near zero.
UNIFORM_GUESS_STD = 0.02


class SpecMoePreTrainedModel(PreTrainedModel):
    """What the base model and the language model share: configuration, initial weights, loading and saving."""

    config_class = SpecMoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config = self.config
        std = config.initializer_range
        # The sum of 2 L branches keeps the residual stream's scale (Radford et al., GPT-2, 2019).
        residual_std = std / math.sqrt(2 * config.num_hidden_layers)
        # Only a module that holds parameters itself is initialized: transformers passes over the others.
        if isinstance(module, ResidualLinear):
            init.normal_(module.weight, std=residual_std)
        elif isinstance(module, (RMSNorm, LayerNorm)):
            init.constant_(module.weight, module.initial_gain)
        elif isinstance(module, (Router, Experts)):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("bias"):
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, std=residual_std if name == "down_proj" else std)
            for buffer in module.buffers(recurse=False):
                init.zeros_(buffer)


class SpecMoeModel(SpecMoePreTrainedModel):
    """The decoder without the language-model head."""

    def __init__(self, config: SpecMoeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        # A tied head turns a large embedding into large logits: an untrained model would insist that each token follows
        # itself. The gain brings it back to a uniform guess, and is learned like the others.
        self.norm = make_norm(config, min(1.0, UNIFORM_GUESS_STD / config.initializer_range))
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router: bool = False,
        **kwargs: Any,
    ) -> SpecMoeModelOutput:
        """Runs the decoder.

        Args:
            input_ids: (B, S) token ids; exactly one of this and `inputs_embeds` is given.
            attention_mask: (B, cached + S), 1 for real tokens and 0 for padding, which may be on either side. Padding
                is neither attended to nor counted in the router's statistics.
            position_ids: (B, S) positions; by default they follow the cached ones.
            past_key_values: cache of the earlier positions.
            inputs_embeds: (B, S, H) in place of `input_ids`.
            use_cache: whether a cache is returned; by default as configured, and never while training.
            output_hidden_states: whether the embeddings and the output of each block are returned.
            output_router: whether the router's statistics are returned.
            kwargs: options that other transformers models take; ignored.

        Returns:
            See `SpecMoeModelOutput`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` were given, or the mask's shape is wrong.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"SpecMoeModel: expected exactly one of input_ids and inputs_embeds, got {given}")
        x_BSH = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        query_length, device = x_BSH.shape[1], x_BSH.device
        past_length = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past_length, past_length + query_length, device=device)[None]
        rotary = rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta)
        mask = attention_mask_for(attention_mask, query_length, past_length, device)
        token_mask = None
        if attention_mask is not None and attention_mask.dim() == 2 and output_router:
            token_mask = attention_mask[:, -query_length:].bool()

        x_BSH = self.dropout(x_BSH)
        hidden_states, routers = [x_BSH], []
        for layer in self.layers:
            x_BSH, *router = layer(
                x_BSH,
                rotary,
                mask=mask,
                past_key_values=past_key_values,
                token_mask=token_mask,
                output_router=output_router,
            )
            hidden_states.append(x_BSH)
            routers.append(router)
        return SpecMoeModelOutput(
            last_hidden_state=self.norm(x_BSH),
            past_key_values=past_key_values,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            **(_average(routers) if output_router else {}),
        )


def _average(routers: list[list[torch.Tensor]]) -> dict[str, Any]:
    """Averages the routers' losses over the layers and stacks their counts."""
    layers = [RouterStatistics(*fields) for fields in routers]
    return {
        "load_balance": torch.stack([layer.load_balance for layer in layers]).mean(),
        "z_loss": torch.stack([layer.z_loss for layer in layers]).mean(),
        "entropy": torch.stack([layer.entropy for layer in layers]).mean(),
        "expert_counts": torch.stack([layer.counts for layer in layers]),
        "router_logits": tuple(layer.logits for layer in layers),
    }


class SpecMoeForCausalLM(SpecMoePreTrainedModel, GenerationMixin):
    """The decoder with a language-model head that shares the embedding's weights."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SpecMoeConfig) -> None:
        super().__init__(config)
        self.model = SpecMoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> SpecMoeCausalLMOutput:
        """Runs the language model and, given labels, its loss.

        The loss is `cross_entropy + w_lb * load_balance + w_z * z_loss - w_H * entropy`, the router's terms being means
        over the layers: load balance is smallest (1) for even use, so it is added; entropy is a bonus.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_hidden_states:
                as in `SpecMoeModel.forward`.
            labels: (B, S), the input ids themselves: position s is scored on label s + 1. -100 is not scored.
            shift_labels: (B, S), already shifted: position s is scored on entry s. In place of `labels`.
            output_router: whether the router's statistics are returned; by default with labels only.
            logits_to_keep: how many of the last positions get logits; 0 for all.
            num_items_in_batch: the number of scored positions in the whole batch when this call sees a part of it: the
                loss then is this part's share, so that the parts' losses add up to the batch's mean.
            kwargs: options that other transformers models take; ignored.

        Returns:
            See `SpecMoeCausalLMOutput`.

        Raises:
            ValueError: as `SpecMoeModel.forward`, or both kinds of labels were given.
        """
        if labels is not None and shift_labels is not None:
            raise ValueError("SpecMoeForCausalLM: expected at most one of labels and shift_labels, got both")
        if labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        has_labels = shift_labels is not None
        output: SpecMoeModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_router=has_labels if output_router is None else output_router or has_labels,
        )
        assert output.last_hidden_state is not None
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = cross_entropy = None
        if shift_labels is not None:
            cross_entropy, loss = self._losses(logits, shift_labels, output, num_items_in_batch)
        return SpecMoeCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            cross_entropy=cross_entropy,
            load_balance=output.load_balance,
            z_loss=output.z_loss,
            entropy=output.entropy,
            expert_counts=output.expert_counts,
            router_logits=output.router_logits,
        )

    def _losses(
        self,
        logits: torch.Tensor,
        shift_labels: torch.Tensor,
        output: SpecMoeModelOutput,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the cross-entropy and the whole loss."""
        shift_labels = shift_labels.to(logits.device)
        cross_entropy = F.cross_entropy(
            logits.float().flatten(0, 1), shift_labels.flatten(), ignore_index=IGNORED_LABEL
        )
        loss = (
            cross_entropy
            + self.config.load_balance_weight * output.load_balance
            + self.config.z_loss_weight * output.z_loss
            - self.config.entropy_weight * output.entropy
        )
        if num_items_in_batch is not None:
            loss = loss * (torch.count_nonzero(shift_labels != IGNORED_LABEL) / num_items_in_batch)
        return cross_entropy, loss
