"""Replies of models in batches: rows of one batch may be of different specialists on one base."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...lora.system import complete
from ...training.data import encode_prompt
from .answering import Ask, Policy, Reply
from .loaded import Loaded
from .residents import Residents

# Tokens of an answer at most: twice the longest query's and some; what is written shorter in one notation may grow.
_GROWTH, _MORE = 2, 64


class Asking:
    """Asks the models of a family.

    Args:
        residents: the models.
        policy: temperature and seed of what is drawn.
        batch_size: rows of a batch at most.
        corrected: whether a correction of a specialist is about a query, of (query, specialist).
    """

    def __init__(
        self,
        residents: Residents,
        policy: Policy,
        batch_size: int = 16,
        corrected: Callable[[str, str], bool] = lambda text, specialist: False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.residents, self.policy, self.batch_size = residents, policy, batch_size
        self.corrected = corrected

    def __call__(self, asks: list[Ask]) -> list[Reply]:
        """Returns the replies in order; what shares a base is answered together."""
        replies: dict[int, Reply] = {}
        groups = self.residents.together(ask.specialist for ask in asks)
        # What is in memory first: it may have to make room for the others.
        groups.sort(key=lambda group: not set(group) <= set(self.residents.names))
        for number, group in enumerate(groups):
            places = [place for place, ask in enumerate(asks) if ask.specialist in group]
            with self.residents.using(group) as loaded:
                if number + 1 < len(groups):
                    self.residents.expect(groups[number + 1][0])
                replies |= zip(places, self._replies(loaded, [asks[place] for place in places]), strict=True)
        return [replies[place] for place in range(len(asks))]

    def _replies(self, loaded: Loaded, asks: list[Ask]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        lengths = [len(encode_prompt(loaded.base.tokenizer, _turns(ask))) for ask in asks]
        longest = loaded.context
        for place, length in enumerate(lengths):
            if length >= longest:
                replies[place] = Reply("", f"the query has {length} tokens, the model takes less than {longest}")
        for drawn in (False, True):
            # Rows of similar length: padding costs as much as text.
            rows = [p for p, ask in enumerate(asks) if (ask.draw > 0) == drawn and p not in replies]
            rows.sort(key=lambda place: lengths[place])
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                most = lengths[batch[-1]]
                room = min(_GROWTH * most + _MORE, longest - most)
                replies |= zip(batch, self._batch(loaded, [asks[place] for place in batch], drawn, room), strict=True)
        return [replies[place] for place in range(len(asks))]

    def _batch(self, loaded: Loaded, asks: Sequence[Ask], drawn: bool, room: int) -> list[Reply]:
        sampling = {"do_sample": True, "temperature": self.policy.temperature} if drawn else {}
        who = [loaded.who(ask.specialist, self.corrected(ask.text, ask.specialist)) for ask in asks]
        with loaded.rows(who), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.policy.seed)
            texts = complete(loaded.base, [_turns(ask) for ask in asks], room, **sampling)
        return [Reply(text) for text in texts]


def _turns(ask: Ask) -> list[dict[str, str]]:
    return [{"role": "user", "content": ask.text}]
