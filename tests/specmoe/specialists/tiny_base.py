"""A very small base of Qwen2's architecture, and some examples."""

from __future__ import annotations

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from specmoe.specialists.corpora import CorpusSettings, generate
from specmoe.training.checkpoints import publish
from specmoe.training.data import train_tokenizer


def sides(name, size, side="train", seed=0):
    """Returns some examples of a specialist."""
    return generate(name, side, CorpusSettings(size=size, test_size=size, seed=seed))


def save_tiny(folder, seed=0):
    """Writes an untrained base in full precision with its tokenizer."""
    tokenizer = train_tokenizer(sides("runic", 50), vocab_size=300)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, max_position_embeddings=256, initializer_range=0.1,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)

    def fill(target):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    return publish(folder.parent, folder.name, fill)
