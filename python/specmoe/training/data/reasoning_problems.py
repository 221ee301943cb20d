"""Reasoning: generated puzzles with answers that can be checked."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .answers import with_answer
from .math_problems import NAMES
from .records import Record

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COMPASS = ("north", "east", "south", "west")
COMPARISONS = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))
KINDS = ("cats", "robots", "painters", "birds", "sailors", "dragons", "tulips", "teachers", "planets", "wizards")
TRAITS = ("brave", "green", "quiet", "hungry", "clever", "heavy", "gentle", "bright", "old", "fast")
BALLS = ("red", "blue", "green", "yellow")
# What is said first, and what follows from it.
RULES = (
    ("it rains", "the street gets wet"),
    ("the alarm rings", "the guard wakes up"),
    ("the switch is on", "the lamp glows"),
    ("the dog barks", "the baby cries"),
    ("the bakery is open", "there is fresh bread"),
    ("the river rises", "the bridge is closed"),
)


def generate_reasoning(count: int, seed: int) -> Iterator[Record]:
    """Yields puzzles drawn from the seed: orders, syllogisms, rules, sequences, days, directions, boxes."""
    draw = random.Random(f"reasoning {seed}")
    kinds = (_order, _syllogism, _rule, _sequence, _day, _direction, _boxes)
    for _ in range(count):
        prompt, steps, answer = draw.choice(kinds)(draw)
        yield Record(prompt, with_answer(steps, answer), "reasoning", str(answer))


def _order(draw: random.Random) -> tuple[str, str, str]:
    more, most, least = draw.choice(COMPARISONS)
    names = draw.sample(NAMES, draw.choice((3, 4)))
    facts = [f"{a} is {more} than {b}." for a, b in zip(names, names[1:], strict=False)]
    draw.shuffle(facts)
    asked, answer = draw.choice(((most, names[0]), (least, names[-1])))
    return f"{' '.join(facts)} Who is the {asked}?", f"In order: {', '.join(names)}.", answer


def _syllogism(draw: random.Random) -> tuple[str, str, str]:
    kind, other = draw.sample(KINDS, 2)
    trait = draw.choice(TRAITS)
    first = f"All {kind} are {trait}."
    form = draw.randrange(3)
    if form == 0:
        return (
            f"{first} All {other} are {kind}. Are all {other} {trait}?",
            f"Every one of the {other} is one of the {kind}, and all of those are {trait}.",
            "yes",
        )
    if form == 1:
        return (
            f"{first} No {other} are {trait}. Can any of the {other} be one of the {kind}?",
            f"One of the {kind} would be {trait}, but no {other} are.",
            "no",
        )
    return (
        f"{first} Some {other} are {trait}. Must some {other} be {kind}?",
        f"What is {trait} need not be one of the {kind}.",
        "no",
    )


def _rule(draw: random.Random) -> tuple[str, str, str]:
    cause, effect = draw.choice(RULES)
    name = draw.choice(NAMES)
    rule = draw.choice(
        (f"If {cause}, {effect}.", f"Whenever {cause}, {effect}.", f"{name} knows: if {cause}, {effect}.")
    )
    form = draw.randrange(4)
    said = (f"Now {cause}.", f"It is not so that {effect}.", f"Now {effect}.", f"It is not so that {cause}.")[form]
    asked = (effect, cause, cause, effect)[form]
    why = (
        "The rule's condition holds, so what it says follows.",
        "If the condition held, the consequence would hold too, and it does not.",
        "The consequence may have another cause.",
        "The rule does not say what happens without its condition.",
    )[form]
    answer = ("yes", "no", "unknown", "unknown")[form]
    return f"{rule} {said} Is it true that {asked}? Answer yes, no or unknown.", why, answer


def _sequence(draw: random.Random) -> tuple[str, str, int]:
    start, step = draw.randint(1, 20), draw.randint(2, 9)
    form = draw.randrange(3)
    if form == 0:
        terms, why = [start + step * i for i in range(5)], f"Each number is {step} more than the one before."
    elif form == 1:
        start, step = draw.randint(1, 5), draw.randint(2, 3)
        terms, why = [start * step**i for i in range(5)], f"Each number is {step} times the one before."
    else:
        terms, why = [start, start + step], "Each number is the sum of the two before."
        while len(terms) < 5:
            terms.append(terms[-1] + terms[-2])
    asked = draw.choice(("What comes next: {}, ?", "Continue the pattern: {}, ...", "Which number follows in {}?"))
    return asked.format(", ".join(map(str, terms[:4]))), why, terms[4]


def _day(draw: random.Random) -> tuple[str, str, str]:
    today, after = draw.randrange(7), draw.randint(2, 20)
    answer = DAYS[(today + after) % 7]
    asked = draw.choice((f"If today is {DAYS[today]}, what day is it in {after} days?",
                         f"Today is {DAYS[today]}. Which day of the week comes {after} days later?"))  # fmt: skip
    return asked, f"{after} days are {after // 7} weeks and {after % 7} days after {DAYS[today]}.", answer


def _direction(draw: random.Random) -> tuple[str, str, str]:
    name, facing = draw.choice(NAMES), draw.randrange(4)
    turns = [draw.choice(("right", "left")) for _ in range(draw.randint(2, 4))]
    said, steps, at = f"{name} faces {COMPASS[facing]} and turns {', then '.join(turns)}.", [], facing
    for turn in turns:
        at = (at + (1 if turn == "right" else -1)) % 4
        steps.append(f"{turn} to {COMPASS[at]}")
    return f"{said} Which way does {name} face now?", f"{name} turns {', '.join(steps)}.", COMPASS[at]


def _boxes(draw: random.Random) -> tuple[str, str, str]:
    balls = draw.sample(BALLS, 3)
    said = [f"Box {i + 1} holds a {ball} ball." for i, ball in enumerate(balls)]
    steps = []
    for _ in range(draw.randint(1, 3)):
        a, b = draw.sample(range(3), 2)
        balls[a], balls[b] = balls[b], balls[a]
        said.append(f"Boxes {a + 1} and {b + 1} swap what they hold.")
        steps.append(", ".join(balls))
    box = draw.randrange(3)
    return (
        f"{' '.join(said)} What color is the ball in box {box + 1}?",
        f"The boxes then hold {'; '.join(steps)}.",
        balls[box],
    )
