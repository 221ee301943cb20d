"""transformers' Trainer in bfloat16 on a model with our experts, and on LoRA over them."""

from __future__ import annotations

import pytest
import torch
from models import mixtral, tokens
from transformers import Trainer, TrainingArguments

# It makes the implementation known.
import moe_kernels  # noqa: F401


class Sequences(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        # One sentence, again and again: whatever learns anything learns it.
        return {"input_ids": tokens(1, 16)[0], "labels": tokens(1, 16)[0]}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_trainer(lora, tmp_path):
    model = mixtral()
    model.set_experts_implementation("moe_kernels")
    if lora:
        peft = pytest.importorskip("peft", minversion="0.17")
        targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=[], target_parameters=targets))
    arguments = TrainingArguments(
        tmp_path,
        max_steps=12 if lora else 8,
        per_device_train_batch_size=4,
        learning_rate=3e-2 if lora else 1e-2,
        bf16=True,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=not lora,
        warmup_steps=0,
    )
    trainer = Trainer(model, arguments, train_dataset=Sequences())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0], losses
