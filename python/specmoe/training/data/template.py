"""Turns as text: who speaks is a token, and so is the end of what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .records import Record

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
ROLE_TOKENS = (PAD, END, USER, ASSISTANT)
# The label that the cross-entropy of torch and transformers leaves out.
IGNORED = -100

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + '" + END + "' }}"
    "{% else %}{{ '" + USER + "' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """Token ids and the labels of one record: -100 wherever there is nothing to learn.

    Attributes:
        input_ids: (length) the turns before the completion, the completion, and the token that ends it.
        labels: (length) the same where the completion and its end are, `IGNORED` before.
    """

    input_ids: list[int]
    labels: list[int]


def messages_of(record: Record) -> list[dict[str, str]]:
    """Returns what was said before the completion, as chat templates take it."""
    turns = [turn for pair in record.history for turn in pair] + [record.prompt]
    return [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]


def encode_prompt(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Returns the ids of turns, and of the token after which the assistant speaks.

    Args:
        tokenizer: a tokenizer of transformers; without a chat template of its own its turns become "User: ..." lines.
        messages: turns with `role` and `content`.
    """
    messages = [{**message, "content": _plain(tokenizer, message["content"])} for message in messages]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        lines = [f"{message['role'].capitalize()}: {message['content']}\n" for message in messages]
        text = f"{tokenizer.bos_token or ''}{''.join(lines)}Assistant:"
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_record(tokenizer: Any, record: Record) -> Encoded:
    """Returns a record's ids and labels: the completion and its end are learned, what comes before is not.

    Args:
        tokenizer: a tokenizer of transformers.
        record: the record.
    """
    before = encode_prompt(tokenizer, messages_of(record))
    space = "" if tokenizer.chat_template else " "
    text = f"{space}{_plain(tokenizer, record.completion)}"
    after = tokenizer(text, add_special_tokens=False)["input_ids"] + [end_of_turn(tokenizer)]
    return Encoded(before + after, [IGNORED] * len(before) + after)


def _plain(tokenizer: Any, text: str) -> str:
    """Returns a text in which nothing is read as a special token: one that it spells out gets a space."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and len(token.content) > 1:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text


def end_of_turn(tokenizer: Any) -> int:
    """Returns the id of the token that ends what the assistant says."""
    # Gemma and Qwen end a turn with a token of its own and a text with another one.
    for token in (END, "<end_of_turn>", "<|im_end|>"):
        # Asked for one at a time: the whole vocabulary as a dictionary takes a millisecond for every 5,000 tokens.
        known = tokenizer.convert_tokens_to_ids(token)
        if known not in (None, tokenizer.unk_token_id) and (tokenizer.chat_template or token == END):
            return known
    if tokenizer.eos_token_id is None:
        raise ValueError("chat template: expected a tokenizer with a token that ends a text, got none")
    return tokenizer.eos_token_id
