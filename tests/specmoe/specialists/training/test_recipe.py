"""The QLoRA recipe, on the architecture that it is meant for, without weights."""

from __future__ import annotations

import torch
from peft import LoraConfig
from transformers import Qwen2Config, Qwen2ForCausalLM

from specmoe.lora.adapters import new_adapter
from specmoe.lora.base import TARGETS, Base
from specmoe.specialists.training import OFFLINE, QLORA


def test_the_recipe_is_the_known_one():
    tuning = QLORA.tuning(1600)
    assert (QLORA.rank, QLORA.alpha, QLORA.dropout) == (16, 32, 0.05)
    assert set(TARGETS) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (tuning.batch_size, tuning.accumulation, tuning.steps) == (4, 4, 5000)
    assert (tuning.learning_rate, tuning.warmup, tuning.grad_clip) == (2e-4, 0.1, 0.3)
    assert (tuning.weight_decay, tuning.optimizer, tuning.gradient_checkpointing) == (0.01, "paged_adamw_8bit", True)
    assert (OFFLINE.rank, OFFLINE.alpha, OFFLINE.optimizer) == (QLORA.rank, QLORA.alpha, QLORA.optimizer)
    assert OFFLINE.batch_size * OFFLINE.accumulation == QLORA.batch_size * QLORA.accumulation


def test_qwen_of_1_5_billion_has_18_464_768_trainable_parameters():
    config = Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        base = Base(Qwen2ForCausalLM(config).requires_grad_(False), None, "Qwen2.5-1.5B", "none")
        model = new_adapter(base, QLORA.rank, QLORA.alpha, QLORA.dropout, 0, TARGETS)
    assert isinstance(model.peft_config["default"], LoraConfig)
    assert sum(p.numel() for p in model.parameters()) - 18_464_768 == 1_543_714_304
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 18_464_768
