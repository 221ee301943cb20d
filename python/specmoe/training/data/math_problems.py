"""Mathematics: GSM8K's problems, or generated ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from ..errors import DataError
from .answers import with_answer
from .records import Record

NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Liam",
    "Mona",
    "Noah",
)
ITEMS = ("apples", "books", "pencils", "stickers", "marbles", "cards", "cookies", "stamps", "shells", "coins", "eggs")

# GSM8K's annotations for a calculator.
_CALCULATOR = re.compile(r"<<[^>]*>>")


def read_gsm8k(path: Path) -> Iterator[Record]:
    """Yields the problems of a GSM8K file, `question` and `answer` in each line.

    Raises:
        DataError: a line cannot be read; the message names it.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                steps, _, answer = _CALCULATOR.sub("", row["answer"]).rpartition("####")
                yield Record(
                    row["question"].strip(), with_answer(steps.strip(), answer.strip()), "math", answer.strip()
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"data: {path}: line {number}: expected a question and an answer: {error!r}") from error


def generate_math(count: int, seed: int) -> Iterator[Record]:
    """Yields sums, equations and word problems drawn from the seed."""
    draw = random.Random(f"math {seed}")
    kinds = (
        _arithmetic,
        _arithmetic,
        _two_steps,
        _equation,
        _equation,
        _shopping,
        _sharing,
        _travel,
        _percentage,
        _area,
    )
    for _ in range(count):
        prompt, steps, answer = draw.choice(kinds)(draw)
        yield Record(prompt, with_answer(steps, answer), "math", str(answer))


def _arithmetic(draw: random.Random) -> tuple[str, str, int]:
    sign = draw.choice("+-*/")
    a, b = draw.randint(2, 99), draw.randint(2, 99)
    if sign == "*":
        b = draw.randint(2, 12)
    if sign == "/":
        b = draw.randint(2, 12)
        a = b * draw.randint(2, 30)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    answer = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
    words = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    asked = draw.choice(
        (
            f"What is {a} {sign} {b}?",
            f"Calculate {a} {sign} {b}.",
            f"Compute {a} {sign} {b}",
            f"How much is {a} {words} {b}?",
            f"{a} {sign} {b} = ?",
            f"Work out {a} {words} {b}.",
        )
    )
    return asked, f"{a} {sign} {b} = {answer}", answer


def _two_steps(draw: random.Random) -> tuple[str, str, int]:
    a, b, c = draw.randint(2, 40), draw.randint(2, 12), draw.randint(2, 12)
    product = b * c
    asked = draw.choice(
        (f"What is {a} + {b} * {c}?", f"Evaluate {a} + {b} * {c}.", f"Find the value of {a} + {b} * {c}.")
    )
    return asked, f"{b} * {c} = {product}\n{a} + {product} = {a + product}", a + product


def _equation(draw: random.Random) -> tuple[str, str, int]:
    x, a, b = draw.randint(1, 30), draw.randint(2, 9), draw.randint(1, 50)
    if draw.random() < 0.5:
        left, steps, right = f"x + {b}", f"x = {x + b} - {b} = {x}", x + b
    else:
        right = a * x + b
        left, steps = f"{a}x + {b}", f"{a}x = {right} - {b} = {a * x}\nx = {a * x} / {a} = {x}"
    asked = draw.choice(("Solve: {} = {}", "Solve for x: {} = {}", "Find x if {} = {}.", "If {} = {}, what is x?"))
    return asked.format(left, right), steps, x


def _shopping(draw: random.Random) -> tuple[str, str, int]:
    name, item = draw.choice(NAMES), draw.choice(ITEMS)
    count, price, extra = draw.randint(2, 12), draw.randint(2, 9), draw.randint(5, 40)
    cost, paid = count * price, count * price + extra
    return (
        f"{name} buys {count} {item} at ${price} each and pays with ${paid}. How much change does {name} get?",
        f"The {item} cost {count} * {price} = {cost} dollars.\nThe change is {paid} - {cost} = {extra} dollars.",
        extra,
    )


def _sharing(draw: random.Random) -> tuple[str, str, int]:
    name, item = draw.choice(NAMES), draw.choice(ITEMS)
    friends, each, lost = draw.randint(2, 9), draw.randint(2, 12), draw.randint(1, 20)
    left = friends * each
    return (
        f"{name} has {left + lost} {item}, loses {lost} and shares the rest equally among {friends} friends. "
        f"How many {item} does each friend get?",
        f"There are {left + lost} - {lost} = {left} {item} left.\nEach friend gets {left} / {friends} = {each}.",
        each,
    )


def _travel(draw: random.Random) -> tuple[str, str, int]:
    what, speed, hours = draw.choice(("train", "car", "bus", "cyclist")), draw.randint(2, 12) * 10, draw.randint(2, 9)
    asked = f"A {what} travels {speed} km per hour for {hours} hours. How far does it go in km?"
    return asked, f"Distance is speed times time: {speed} * {hours} = {speed * hours}", speed * hours


def _percentage(draw: random.Random) -> tuple[str, str, int]:
    percent, base = draw.choice((5, 10, 20, 25, 50, 75)), draw.randint(1, 25) * 20
    answer = Fraction(percent * base, 100)
    asked = draw.choice((f"What is {percent}% of {base}?", f"Find {percent} percent of {base}."))
    return asked, f"{percent} / 100 * {base} = {percent * base} / 100 = {answer}", int(answer)


def _area(draw: random.Random) -> tuple[str, str, int]:
    a, b = draw.randint(2, 30), draw.randint(2, 12)
    if draw.random() < 0.5:
        return f"A rectangle is {a} m long and {b} m wide. What is its area?", f"The area is {a} * {b} = {a * b}", a * b
    return (
        f"What is the perimeter of a rectangle with sides {a} and {b}?",
        f"The perimeter is 2 * ({a} + {b}) = 2 * {a + b} = {2 * (a + b)}",
        2 * (a + b),
    )
