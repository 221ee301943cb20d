"""Mixed experts: what a step gives, and whole answers."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from specmoe.hierarchical import GREEDY, Decoding, MixedStream, generate, mixing_weights
from specmoe.routing import Route
from specmoe.training.data import Record, encode_prompt, end_of_turn, train_tokenizer

TEXTS = ("one and two", "three", "four five six seven eight nine ten")
PROMPTS = [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Record(text, text, "math") for text in TEXTS], 300)


@pytest.fixture(scope="module")
def experts(tokenizer):
    def make(seed: int) -> GPT2LMHeadModel:
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=48, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
        )
        return GPT2LMHeadModel(config).eval()

    return {name: make(seed) for seed, name in enumerate(("a", "b", "c"))}


@torch.no_grad()
def slowly(experts, tokenizer, prompt, weights, tokens):
    """Greedy decoding of one prompt by the formula: no cache, no batch."""
    ids, said = encode_prompt(tokenizer, prompt), []
    log_w = weights.double().log()
    for _ in range(tokens):
        log_p = torch.stack([e(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for e in experts.values()])
        token = int((log_w[:, None] + log_p).logsumexp(0).argmax())
        log_w = (log_w + log_p[:, token]).log_softmax(0)
        if token == end_of_turn(tokenizer):
            break
        ids.append(token)
        said.append(token)
    return said


WEIGHTS = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])


def test_a_batch_with_caches_says_what_the_formula_says(experts, tokenizer):
    answers = generate(experts, tokenizer, PROMPTS, WEIGHTS, Decoding(0.0, max_new_tokens=12))
    for prompt, weights, answer in zip(PROMPTS, WEIGHTS, answers, strict=True):
        assert answer.ids == slowly(experts, tokenizer, prompt, weights, 12)
        assert answer.text == tokenizer.decode(answer.ids)


def test_a_row_without_weight_for_an_expert_never_asks_it(experts, tokenizer):
    class Broken(torch.nn.Module):
        config = experts["a"].config

        def forward(self, *args, **kwargs):
            raise AssertionError("asked")

    only = torch.tensor([[0.0, 1.0, 0.0]] * 3)
    some = {"a": Broken(), "b": experts["b"], "c": Broken()}
    assert len(generate(some, tokenizer, PROMPTS, only, Decoding(0.0, max_new_tokens=3))) == 3


def test_the_end_stops_a_row_and_the_others_go_on(experts, tokenizer):
    limited = generate(experts, tokenizer, PROMPTS, WEIGHTS, Decoding(0.0, max_new_tokens=12))
    free = next(row for row, answer in enumerate(limited) if len(set(answer.ids)) > 2)
    # The end token takes the place of what the row says third, by its bias in every expert.
    third = limited[free].ids[2]
    order = torch.arange(len(tokenizer))
    order[third], order[end_of_turn(tokenizer)] = end_of_turn(tokenizer), third

    class Swapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, **inputs):
            out = self.inner(**inputs)
            out.logits = out.logits[..., order]
            return out

    swapped = {name: Swapped(expert) for name, expert in experts.items()}
    answers = generate(swapped, tokenizer, PROMPTS, WEIGHTS, Decoding(0.0, max_new_tokens=12))
    first = limited[free].ids.index(third)
    assert answers[free].stopped and answers[free].ids == limited[free].ids[:first]
    for row, answer in enumerate(answers):
        if third not in limited[row].ids and end_of_turn(tokenizer) not in limited[row].ids:
            assert answer.ids == limited[row].ids and not answer.stopped


def test_the_context_bounds_an_answer_and_a_longer_prompt_is_refused(experts, tokenizer):
    no_end = torch.full((len(tokenizer),), 0.0)
    no_end[end_of_turn(tokenizer)] = -1e9
    for expert in experts.values():
        expert.lm_head.register_forward_hook(lambda module, inputs, out: out + no_end)
    try:
        answers = generate(experts, tokenizer, PROMPTS, WEIGHTS)
    finally:
        for expert in experts.values():
            expert.lm_head._forward_hooks.clear()
    lengths = [len(encode_prompt(tokenizer, prompt)) + len(a.ids) for prompt, a in zip(PROMPTS, answers, strict=True)]
    assert lengths == [48, 48, 48] and not any(answer.stopped for answer in answers)
    long = [[{"role": "user", "content": "9 " * 60}]]
    with pytest.raises(ValueError, match="prompt: expected less than 48 tokens, got"):
        generate(experts, tokenizer, long, WEIGHTS[:1])


def test_sampling_is_a_function_of_the_seed(experts, tokenizer):
    def said(seed: int) -> list[list[int]]:
        how = Decoding(1.0, 0.9, max_new_tokens=10, seed=seed)
        return [answer.ids for answer in generate(experts, tokenizer, PROMPTS, WEIGHTS, how)]

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert GREEDY.temperature == 0


def test_tokens_are_told_as_they_come(experts, tokenizer):
    told: list[int] = []
    (answer,) = generate(
        experts, tokenizer, PROMPTS[:1], WEIGHTS[:1], Decoding(0.0, max_new_tokens=9), lambda t: told.extend(t.tolist())
    )
    assert told == answer.ids


def test_weights_follow_what_was_said(experts, tokenizer):
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[0])])
    stream = MixedStream(list(experts.values()), WEIGHTS[:1])
    mixed = stream.step(ids, torch.ones_like(ids))
    assert mixed.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        alone = [expert(ids).logits[0, -1].softmax(-1) for expert in experts.values()]
    assert torch.allclose(mixed[0].exp(), 0.6 * alone[0] + 0.4 * alone[1], atol=1e-6)
    token = int(alone[1].argmax())
    stream.chosen(torch.tensor([token]))
    share = 0.6 * alone[0][token] / (0.6 * alone[0][token] + 0.4 * alone[1][token])
    assert stream.log_weights_RE[0].exp().tolist() == pytest.approx([share.item(), 1 - share.item(), 0.0], abs=1e-5)


def test_the_likeliest_experts_share_the_weight():
    routes = [
        Route("a", 0.6, {"a": 0.6, "b": 0.3, "c": 0.1}),
        Route("c", 0.999, {"a": 0.0005, "b": 0.0005, "c": 0.999}),
    ]
    weights = mixing_weights(routes, ("a", "b", "c"))
    assert weights.tolist()[0] == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert weights.tolist()[1] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p"), ({"max_new_tokens": 0}, "max_new_tokens")],
)
def test_decoding_says_what_it_refuses(values, message):
    with pytest.raises(ValueError, match=f"{message}: expected"):
        Decoding(**values)
