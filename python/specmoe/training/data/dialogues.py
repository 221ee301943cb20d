"""Conversation: small talk put together from turns, two exchanges to a dialogue."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .dialogue_turns import SLOTS, TOPICS
from .records import Record


def generate_conversation(count: int, seed: int) -> Iterator[Record]:
    """Yields the assistant's turns of dialogues drawn from the seed, with what was said before as the history."""
    draw = random.Random(f"conversation {seed}")
    names = sorted(TOPICS)
    made = 0
    while made < count:
        topic = TOPICS[draw.choice(names)]
        words = {slot: draw.choice(values) for slot, values in SLOTS.items()}
        opener, reply, follow, close = (draw.choice(turns).format(**words) for turns in topic)
        opener = draw.choice(("", "", "", "Hi! ", "Hey, ", "Well, ")) + opener
        yield Record(opener, reply, "conversation")
        yield Record(follow, close, "conversation", history=((opener, reply),))
        made += 2
