"""A byte-level tokenizer for text, code and numbers, trained on the records."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .records import Record
from .template import CHAT_TEMPLATE, END, PAD, ROLE_TOKENS


def train_tokenizer(
    records: Iterable[Record], vocab_size: int = 4096, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with the role tokens and their chat template.

    Each digit is a token, because sums are done digit by digit. Every text can be encoded and comes back as it was.

    Args:
        records: what the merges are learned from.
        vocab_size: number of tokens, at least 256 and the role tokens.
        max_length: the longest context of the model, in tokens, recorded for the tokenizer's users.

    Returns:
        The tokenizer; `save_pretrained` writes what `AutoTokenizer.from_pretrained` needs.

    Raises:
        ValueError: the vocabulary is too small.
    """
    least = 256 + len(ROLE_TOKENS)
    if vocab_size < least:
        raise ValueError(f"train_tokenizer: vocab_size: expected at least {least}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(ROLE_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for record in records for text in (record.prompt, record.completion))
    tokenizer.train_from_iterator(texts, trainer)
    options = {} if max_length is None else {"model_max_length": max_length}
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **options,
    )
    result.chat_template = CHAT_TEMPLATE
    return result
