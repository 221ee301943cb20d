"""Prompts and completions of five domains: `load_domain("math")`, or from a file or a data set of the hub."""

from .answers import answer_of, is_right
from .prepare import collate, encode_records
from .records import DOMAINS, GROUPS, SPLITS, Record, split, unique
from .sources import load_domain
from .template import encode_prompt, encode_record, end_of_turn, messages_of
from .tokenizer import train_tokenizer

__all__ = [
    "DOMAINS",
    "GROUPS",
    "SPLITS",
    "Record",
    "answer_of",
    "collate",
    "encode_prompt",
    "encode_record",
    "encode_records",
    "end_of_turn",
    "is_right",
    "load_domain",
    "messages_of",
    "split",
    "train_tokenizer",
    "unique",
]
