"""Answers that can be checked: the last line of a completion says "Answer: ..."."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

MARK = "Answer:"
_ANSWER = re.compile(r"Answer:[ \t]*(.+)")


def with_answer(steps: str, answer: object) -> str:
    """Returns a completion that ends with the line that `answer_of` reads."""
    return f"{steps}\n{MARK} {answer}"


def answer_of(completion: str) -> str | None:
    """Returns what a completion gives as its answer, None where it gives none."""
    found = _ANSWER.findall(completion)
    return found[-1].strip() if found else None


def is_right(completion: str, answer: str) -> bool:
    """Says whether a completion gives this answer; numbers are compared by value, words without case and full stop."""
    given = answer_of(completion)
    if given is None:
        return False
    numbers = _number(given), _number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return given.rstrip(".").casefold() == answer.rstrip(".").casefold()


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text.rstrip(".").replace(",", "").removeprefix("$").removeprefix("x = "))
    except InvalidOperation:
        return None
