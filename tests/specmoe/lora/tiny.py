"""Tiny bases and adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from specmoe.lora.base import TARGETS, Base, digest_of
from specmoe.training.data import Record, train_tokenizer

TEXTS = {
    "math": ("What is {} + 1?", "It is one more.\nAnswer: {}"),
    "code": ("Write a function f{}.", "def f():\n    return {}"),
    "conversation": ("Hello, I am {}.", "Nice to meet you, {}!"),
    "reasoning": ("If today is day {}, what day is tomorrow?", "One more.\nAnswer: {}"),
    "knowledge": ("Explain number {}.", "It comes before {}."),
}


def records(domain: str, count: int = 60) -> list[Record]:
    prompt, completion = TEXTS[domain]
    return [Record(prompt.format(n), completion.format(n + 1), domain, str(n + 1)) for n in range(count)]


SMALL = {"samples": 24, "epochs": 2, "batch_size": 4, "validation": 8, "precision": "float32", "rank": 4}


def interrupt_after(monkeypatch, steps: int) -> None:
    """Has training receive Ctrl-C during a step."""
    import signal

    from specmoe.training.tuning.trainer import TuneTrainer

    count, theirs = [0], TuneTrainer.training_step

    def training_step(self, *args, **kwargs):
        count[0] += 1
        if count[0] == steps:
            signal.raise_signal(signal.SIGINT)
        return theirs(self, *args, **kwargs)

    monkeypatch.setattr(TuneTrainer, "training_step", training_step)


def tiny_model(seed: int = 0, vocab: int = 300) -> Gemma3ForCausalLM:
    config = Gemma3TextConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        sliding_window=64,
        query_pre_attn_scalar=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    return Gemma3ForCausalLM(config).eval().requires_grad_(False)


def tiny_base(seed: int = 0) -> Base:
    tokenizer = train_tokenizer([r for domain in TEXTS for r in records(domain)], 300, 256)
    model = tiny_model(seed)
    return Base(model, tokenizer, "tiny", digest_of(model))


def save_adapters(model, folder: Path, ranks: dict[str, int], targets=TARGETS, spread: float = 0.3) -> dict[str, Path]:
    """Saves random adapters through PEFT and returns where they are; the model is left as it was."""
    peft = None
    for number, (name, rank) in enumerate(ranks.items()):
        config = LoraConfig(r=rank, lora_alpha=2 * rank + number, target_modules=list(targets), task_type="CAUSAL_LM")
        if peft is None:
            peft = get_peft_model(model, config, adapter_name=name)
        else:
            peft.add_adapter(name, config)
    torch.manual_seed(1)
    for key, parameter in peft.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(0, spread)
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    peft.unload()
    model.requires_grad_(False)
    # PEFT puts the one called "default" into the folder itself.
    return {name: folder / name for name in ranks}


def peft_model(model, places: dict[str, Path]):
    """Returns PEFT's own model over these adapters."""
    from peft import PeftModel

    names = list(places)
    peft = PeftModel.from_pretrained(model, str(places[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(str(places[name]), adapter_name=name)
    return peft.eval()
