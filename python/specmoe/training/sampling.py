"""Text sampled from a model while it trains."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEMPERATURE = 0.8


def sample_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tokens: int, seed: int) -> str:
    """Samples a continuation of a line end, leaving the random state as it was.

    Args:
        model: a causal language model; its mode (training or evaluation) is restored afterwards.
        tokenizer: its tokenizer.
        tokens: length of the sample; at most the context of the model is used.
        seed: seed of the sample.

    Returns:
        The text.
    """
    start = tokenizer("\n", return_tensors="pt").input_ids
    if start.shape[1] == 0:  # the corpus has no line end
        start = torch.zeros(1, 1, dtype=torch.long)
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        ids = model.generate(  # type: ignore[operator]
            start.to(model.device),
            attention_mask=torch.ones_like(start, device=model.device),
            max_new_tokens=min(tokens, model.config.max_position_embeddings - start.shape[1]),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            pad_token_id=0,
        )
    model.train(was_training)
    return str(tokenizer.decode(ids[0, start.shape[1] :]))
