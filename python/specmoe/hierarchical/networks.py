"""The experts' networks: small GPTs from scratch, or GPT-2 as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ..training.data.template import CHAT_TEMPLATE, END, PAD, ROLE_TOKENS
from ..training.errors import DataError
from .presets import ExpertPreset


def new_network(preset: ExpertPreset, tokenizer: Any, seed: int) -> GPT2LMHeadModel:
    """Returns a GPT with random weights that are a function of the seed.

    Args:
        preset: its size.
        tokenizer: the shared tokenizer.
        seed: of the weights.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=preset.context,
        n_embd=preset.width,
        n_layer=preset.layers,
        n_head=preset.heads,
        # The same function as GPT-2's own name for it, in one kernel.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=preset.dropout,
        embd_pdrop=preset.dropout,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def pretrained_tokenizer(name: str) -> Any:
    """Returns the tokenizer of a trained GPT-2 with the role tokens and their chat template.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        DataError: there is none.
    """
    tokenizer = _loaded(name, lambda: AutoTokenizer.from_pretrained(name))
    tokenizer.add_special_tokens({"pad_token": PAD, "eos_token": END, "extra_special_tokens": list(ROLE_TOKENS[2:])})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pretrained_network(name: str, tokenizer: Any, seed: int) -> GPT2LMHeadModel:
    """Returns a trained GPT-2 with an embedding for each role token: the mean of the others, and a little noise.

    Args:
        name: a folder, or a name on the hub.
        tokenizer: what `pretrained_tokenizer` returned.
        seed: of the noise.

    Raises:
        DataError: there is none, or it is no GPT-2.
    """
    network = _loaded(name, lambda: GPT2LMHeadModel.from_pretrained(name))
    if network.config.model_type != "gpt2":
        raise DataError(f"hierarchical: --init: expected a GPT-2, got a {network.config.model_type} in {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.resize_token_embeddings(len(tokenizer))
    network.config.attn_pdrop = 0.0
    for block in network.transformer.h:
        block.attn.attn_dropout.p = 0.0
    network.config.activation_function = "gelu_pytorch_tanh"
    for config in (network.config, network.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config.bos_token_id = None
    return network


def _loaded(name: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # transformers and the hub's client raise many unrelated types
        where = "the folder" if Path(name).is_dir() else "neither a folder nor loaded from the hub:"
        raise DataError(f"hierarchical: --init {name}: {where} {type(error).__name__}: {error}") from error
