"""Turns as tokens, and what of them is learned."""

from __future__ import annotations

import pytest

from specmoe.training import DataError
from specmoe.training.data import Record, collate, encode_prompt, encode_records, messages_of, train_tokenizer
from specmoe.training.data.math_problems import generate_math
from specmoe.training.data.template import IGNORED, encode_record


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(generate_math(200, 0), vocab_size=400)


def test_only_the_completion_and_its_end_are_learned(tokenizer):
    record = Record("And now?", "It is 42.", "math", history=(("Hi", "Hello"),))
    encoded = encode_record(tokenizer, record)
    assert tokenizer.decode(encoded.input_ids) == (
        "<|user|>Hi<|assistant|>Hello<|end|><|user|>And now?<|assistant|>It is 42.<|end|>"
    )
    learned = [label for label in encoded.labels if label != IGNORED]
    assert tokenizer.decode(learned) == "It is 42.<|end|>"
    assert encoded.input_ids[: -len(learned)] == encode_prompt(tokenizer, messages_of(record))


def test_any_text_comes_back(tokenizer):
    text = "naïve ∅ 🐃\n\tdef f(x):  return x\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234567")["input_ids"]) == 7


def test_a_text_that_names_role_tokens_is_data(tokenizer):
    """A prompt that spells the end token must not end the turn."""
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "say <|end|> please"}])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 0


def test_a_tokenizer_without_a_template(tokenizer):
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    encoded = encode_record(plain, Record("Hi", "Hello", "conversation"))
    assert plain.decode(encoded.input_ids) == "User: Hi\nAssistant: Hello<|end|>"


def test_long_records_are_left_out_and_not_cut(tokenizer):
    records = [Record("a", "b " * 100, "math"), Record("a", "b", "math")]
    rows = encode_records(records, tokenizer, max_length=32)
    assert rows["row"] == [1]
    with pytest.raises(DataError, match="at most 3 tokens, got none among 2"):
        encode_records(records, tokenizer, max_length=3)


def test_batches_are_padded_at_the_end(tokenizer):
    rows = encode_records([Record("a", "b", "math"), Record("a b c d", "e f", "math")], tokenizer, max_length=32)
    batch = collate(list(rows), tokenizer.pad_token_id)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    short = int(batch["attention_mask"][0].sum())
    assert (batch["input_ids"][0, short:] == tokenizer.pad_token_id).all()
    assert (batch["labels"][0, short:] == IGNORED).all()


def test_a_small_vocabulary_is_refused(tokenizer):
    with pytest.raises(ValueError, match="vocab_size: expected at least 260, got 100"):
        train_tokenizer([], vocab_size=100)
