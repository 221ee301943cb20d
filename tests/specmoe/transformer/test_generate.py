"""`generate`: greedy, sampled, by beams, in padded batches, with every cache."""

from __future__ import annotations

import pytest
import torch

PAD = 0


@torch.no_grad()
def greedy(model, prompt: torch.Tensor, length: int) -> torch.Tensor:
    """Greedy decoding with no cache, written out."""
    for _ in range(length):
        prompt = torch.cat([prompt, model(prompt, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return prompt


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}],
    ids=["cache", "no-cache", "static-cache", "chunked-prefill"],
)
def test_greedy_generation_equals_greedy_decoding_written_out(make_model, tokens, options):
    model = make_model()
    got = model.generate(tokens, max_new_tokens=9, do_sample=False, pad_token_id=PAD, **options)
    assert torch.equal(got, greedy(model, tokens, 9))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["cache", "static-cache"])
def test_a_left_padded_batch_generates_what_each_prompt_does_alone(make_model, tokens, options):
    model = make_model()
    lengths = (4, 11, 7)
    padded, mask = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        padded[row, 11 - length :] = tokens[row, :length]
        mask[row, 11 - length :] = 1
    got = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=PAD, **options)
    for row, length in enumerate(lengths):
        assert torch.equal(got[row, 11:], greedy(model, tokens[row : row + 1, :length], 8)[0, length:])


def test_sampling_follows_the_seed(make_model, tokens):
    model = make_model()

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(tokens, max_new_tokens=12, do_sample=True, pad_token_id=PAD)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


def test_beams_find_a_sequence_at_least_as_likely_as_the_greedy_one(make_model, tokens):
    model = make_model()

    def log_likelihood(ids: torch.Tensor) -> torch.Tensor:
        scores = model(ids).logits.log_softmax(-1)[:, 10:-1]
        return scores.gather(-1, ids[:, 11:, None]).sum((1, 2))

    beams = model.generate(tokens, max_new_tokens=5, num_beams=4, do_sample=False, pad_token_id=PAD)
    plain = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=PAD)
    assert (log_likelihood(beams) >= log_likelihood(plain) - 1e-4).all()
