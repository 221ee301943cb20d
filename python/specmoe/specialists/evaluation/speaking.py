"""A family's models in memory, asked as the runtime asks them, with a count of what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..family import Family
from ..learning.rules import LearnedRules
from ..runtime.answering import Ask, Policy, Reply
from ..runtime.generation import Asking
from ..runtime.loaded import Loaded
from ..runtime.members import members_of
from ..runtime.residents import Residents

# More than any family takes: here everything is in memory at once.
_BUDGET = 1 << 50


class Speakers:
    """All models of a family.

    Attributes:
        names: the specialists.
        load_seconds: what it took to open the base and all adapters.
        tokens, seconds: what was generated so far, and in which time.
    """

    def __init__(self, family: Family, policy: Policy, batch: int) -> None:
        """Opens the models.

        Args:
            family: the family.
            policy: how answers are drawn.
            batch: most prompts at once.
        """
        self.names = family.specialists
        self.policy, self.batch = policy, batch
        started = time.perf_counter()
        self._residents = Residents(members_of(family.folder), _BUDGET)
        for group in self._residents.together(self.names):
            with self._residents.using(group) as loaded:
                self.tokenizer = loaded.base.tokenizer
        self.load_seconds = time.perf_counter() - started
        self._asking = Asking(self._residents, policy, batch, LearnedRules(family.folder).corrected)
        self.tokens, self.seconds = 0, 0.0
        self._likeliest: dict[Ask, Reply] = {}

    def answer(self, asks: Sequence[Ask], told: Callable[[int], None] | None = None) -> list[Reply]:
        """Returns what the models say, in the order of the questions; a likeliest answer is computed once.

        Args:
            asks: who is asked what.
            told: called with the number of answers that are there, after every batch.
        """
        new = [place for place, ask in enumerate(asks) if ask not in self._likeliest]
        # Of similar length, and drawn ones apart from likeliest ones.
        new.sort(key=lambda place: (asks[place].draw > 0, len(asks[place].text.encode()), place))
        replies: dict[int, Reply] = {}
        for start in range(0, len(new), self.batch):
            places = new[start : start + self.batch]
            for place, reply in zip(places, self._timed([asks[place] for place in places]), strict=True):
                replies[place] = reply
                if asks[place].draw == 0:
                    self._likeliest[asks[place]] = reply
            if told is not None:
                told(len(asks) - len(new) + len(replies))
        return [replies.get(place) or self._likeliest[ask] for place, ask in enumerate(asks)]

    @contextmanager
    def using(self, name: str) -> Iterator[Loaded]:
        """Has the base with a specialist's adapter for the block."""
        with self._residents.using([name]) as loaded:
            yield loaded

    def _timed(self, asks: list[Ask]) -> list[Reply]:
        started = time.perf_counter()
        replies = self._asking(asks)
        self.seconds += time.perf_counter() - started
        # One more for the token that ends an answer.
        ids = self.tokenizer([reply.text for reply in replies], add_special_tokens=False)["input_ids"]
        self.tokens += sum(len(each) + 1 for each in ids)
        return replies
