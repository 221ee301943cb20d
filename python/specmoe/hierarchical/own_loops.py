"""Records of where an expert goes round in circles: its own greedy answers to the prompts that it learns from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..training.data.template import IGNORED
from .decoding import Decoding
from .generation import continuations
from .objective import AVOIDED

# Tokens that make a repetition together, prompts that are asked, and how many at once.
RUN, MOST_PROMPTS, _BATCH = 4, 1000, 100
_HOW = Decoding(temperature=0.0, max_new_tokens=96)


def own_loops(network: Any, rows: Any, context: int, seed: int) -> Any:
    """Returns the expert's answers that repeat themselves, with the token that completes each repetition to be avoided.

    A repetition is a run of `RUN` tokens that the answer has had before. This is the sequence-level unlikelihood of
    Welleck et al. (2020, arXiv:1908.04319), with the answers of the expert as it was at first. Nothing else of an
    answer is learned.

    Args:
        network: the expert, in evaluation mode.
        rows: a `datasets.Dataset` as `encode_records` returns it, for its prompts.
        context: the most tokens of a record.
        seed: of the choice of prompts, where there are many.

    Returns:
        A `datasets.Dataset` with `input_ids` and `labels`, for `objective.unlikelihood_loss`.
    """
    from datasets import Dataset, Features, List, Value

    prompts = [
        ids[: next(place for place, label in enumerate(labels) if label != IGNORED)]
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]
    if len(prompts) > MOST_PROMPTS:
        prompts = random.Random(f"own loops {seed}").sample(prompts, MOST_PROMPTS)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for prompt, answer in _answers(network, prompts, context):
        if any(again := _goes_round(answer)):
            columns["input_ids"].append(prompt + answer)
            marked = [AVOIDED - token if bad else IGNORED for token, bad in zip(answer, again, strict=True)]
            columns["labels"].append([IGNORED] * len(prompt) + marked)
    # Said also of an empty one, as `datasets` has them of such columns.
    return Dataset.from_dict(columns, Features(input_ids=List(Value("int32")), labels=List(Value("int64"))))


def _answers(network: Any, prompts: Sequence[list[int]], context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yields prompts and greedy answers, without the end."""
    pad, end = network.config.pad_token_id, network.config.eos_token_id
    # Prompts of about the same length together.
    order = sorted((prompt for prompt in prompts if len(prompt) < context), key=len)
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        said = continuations([network], batch, torch.ones(len(batch), 1), _HOW, pad, end)
        for prompt, (answer, _) in zip(batch, said, strict=True):
            yield prompt, answer[: context - len(prompt)]


def _goes_round(answer: list[int]) -> list[bool]:
    """Says of each token whether it ends a run of `RUN` tokens that was there before."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for end in range(1, len(answer) + 1):
        run = tuple(answer[max(0, end - RUN) : end])
        found.append(len(run) == RUN and run in seen)
        seen.add(run)
    return found
