"""A short training loop without the Trainer, for DirectML: accelerate, on which the Trainer rests, does not know it.

Same data, optimizer, schedule, evaluation and record. It keeps the best model only: such a run cannot be resumed.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from .checkpoints import checkpoint_name, prune, publish
from .run_state import Surroundings, save_model
from .trainer import decayed_parameters
from .windows import TrainWindows


def train_plainly(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, windows: TrainWindows, around: Surroundings
) -> tuple[int, float]:
    """Trains a model where it is.

    Args:
        model: the model, on its device.
        tokenizer: its tokenizer, saved beside it.
        windows: the whole run's windows.
        around: what else the loop works with.

    Returns:
        The step of the best evaluation and its cross-entropy, nats per token.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    settings, recorder, checkpoints = around.settings, around.recorder, around.checkpoints
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay), settings.learning_rate, settings.betas
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
    best_step, best_loss = 0, float("inf")
    model.train()
    for step in range(1, settings.steps + 1):
        first = (step - 1) * settings.batch_size
        batch = windows.__getitems__(list(range(first, first + settings.batch_size)))
        output = model(**{name: value.to(model.device) for name, value in batch.items()})
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        learning_rate = schedule.get_last_lr()[0]
        schedule.step()
        optimizer.zero_grad()
        recorder.add(output)
        recorder.reporter.advance(step)
        if step % settings.log_every == 0 or step == settings.steps:
            recorder.record(step, learning_rate)
        if step % settings.eval_every == 0 or step == settings.steps:
            loss = recorder.evaluate(model, tokenizer, step)
            if loss < best_loss:
                best_step, best_loss = step, loss
                publish(checkpoints, checkpoint_name(step), lambda folder: save_model(model, tokenizer, folder))
                prune(checkpoints, 1, None)
        if around.stop.requested:
            raise KeyboardInterrupt
    return best_step, best_loss


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Returns AdamW's two groups: the parameters that are decayed, and the others."""
    decayed = set(decayed_parameters(model))
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
