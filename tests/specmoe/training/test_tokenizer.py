"""The character tokenizer."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from specmoe.training.tokenizer import build_character_tokenizer, encode_characters

TEXT = "To be, or not to be:\n\tthat's é the 'question'  .\r\n"


def test_tokens_are_the_characters_in_order_of_code_point():
    tokenizer = build_character_tokenizer(TEXT)
    characters = sorted(set(TEXT))
    assert len(tokenizer) == len(characters)
    assert tokenizer.convert_ids_to_tokens(list(range(len(characters)))) == characters


def test_auto_tokenizer_loads_it_and_round_trips(tmp_path):
    build_character_tokenizer(TEXT, max_length=64).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    encoded = loaded(TEXT)
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert len(encoded["input_ids"]) == len(TEXT)
    assert loaded.decode(encoded["input_ids"]) == TEXT
    assert loaded.model_max_length == 64


def test_the_table_encodes_as_the_tokenizer_does():
    tokenizer = build_character_tokenizer(TEXT + "€")
    assert encode_characters(tokenizer, TEXT).tolist() == tokenizer(TEXT)["input_ids"]


def test_an_unknown_character_is_dropped():
    tokenizer = build_character_tokenizer("abc")
    assert tokenizer.decode(tokenizer("a~b")["input_ids"]) == "ab"


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="text: expected at least one character, got none"):
        build_character_tokenizer("")
