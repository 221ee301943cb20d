"""How a query is answered: greedily, checked by the codec, drawn again, by another model, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ...notation.search import MAX_LENGTH
from ...routing import Route
from ..corpora import SPECIALISTS
from ..requests import Request, in_plain_words, understand
from ..verification import verify
from .answer import Answer, Attempt
from .members import COORDINATOR


@dataclass(frozen=True)
class Policy:
    """How hard is tried.

    Args:
        samples: answers that are drawn where the likeliest is wrong, of each model.
        temperature: of these draws.
        others: other models that are asked where one has failed.
        votes: answers that are drawn to see how sure a model is of what the codec cannot check.
        agreement: share of the attempts that have to say the same for an answer that is not verified.
        sure: the router's confidence from which on its choice alone is asked first.
        seed: of the draws.
    """

    samples: int = 4
    temperature: float = 0.7
    others: int = 1
    votes: int = 3
    agreement: float = 0.5
    sure: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "others", "votes"):
            if getattr(self, name) < 0:
                raise ValueError(f"policy: {name}: expected at least 0, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"policy: temperature: expected more than 0, got {self.temperature}")
        for name in ("agreement", "sure"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"policy: {name}: expected a share from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Ask:
    """A question to one model; `draw` is 0 for its likeliest answer, n for the n-th that is drawn."""

    specialist: str
    text: str
    draw: int = 0


@dataclass(frozen=True)
class Reply:
    """What a model said, or why it could not say anything."""

    text: str
    problem: str = ""


# Yields what has to be asked next, is sent the replies, and returns the answer.
Answering: TypeAlias = Generator[list[Ask], list[Reply], Answer]


def answer_all(
    texts: Sequence[str],
    routes: Sequence[Route],
    members: Iterable[str],
    ask: Callable[[list[Ask]], list[Reply]],
    policy: Policy,
    understood: Callable[[str], Request] = understand,
) -> list[Answer]:
    """Returns an answer to each query; what all of them have to ask at the same stage is asked together.

    Args:
        texts: the queries.
        routes: the router's choice for each.
        members: the models there are.
        ask: returns the models' replies, in order.
        policy: how hard is tried.
        understood: says what a query asks for.
    """
    there = tuple(members)
    answers: dict[int, Answer] = {}
    open_: dict[int, Answering] = {
        place: answering(text, route, there, policy, understood)
        for place, (text, route) in enumerate(zip(texts, routes, strict=True))
    }
    replies: dict[int, list[Reply] | None] = dict.fromkeys(open_)
    while open_:
        asked: dict[int, list[Ask]] = {}
        for place, query in list(open_.items()):
            try:
                given = replies[place]
                asked[place] = next(query) if given is None else query.send(given)
            except StopIteration as end:
                answers[place] = end.value
                del open_[place]
        said = iter(ask([each for asks in asked.values() for each in asks]) if asked else ())
        replies = {place: [next(said) for _ in asks] for place, asks in asked.items()}
    return [answers[place] for place in range(len(texts))]


def answering(
    text: str,
    route: Route,
    members: Sequence[str],
    policy: Policy,
    understood: Callable[[str], Request] = understand,
) -> Answering:
    """Answers one query; see `Answering`."""
    if not text.strip():
        return _abstained(text, route, "the query is empty")
    if len(text) > MAX_LENGTH:
        return _abstained(text, route, f"expected a query of at most {MAX_LENGTH} characters, got {len(text):,}")
    request = understood(text)
    names = candidates(route, request, members, policy)
    if request.target:
        return (yield from _checked(text, route, request, names, policy))
    return (yield from _voted(text, route, names, policy))


def candidates(route: Route, request: Request, members: Sequence[str], policy: Policy) -> list[str]:
    """Returns who is asked, in order: the router's choice, the coordinator, and whose notations are asked about."""
    likely = sorted(route.probabilities, key=lambda name: -route.probabilities[name])
    pair = request.source, request.target
    able = [name for name in likely if name in SPECIALISTS and pair in SPECIALISTS[name].pairs]
    unsure = likely[:2] if route.confidence < policy.sure else []
    first = [route.domain] if route.domain else unsure[:1]
    wanted = [name for name in dict.fromkeys([*first, *unsure, COORDINATOR, *able]) if name in members]
    return wanted[: 1 + policy.others]


def _checked(text: str, route: Route, request: Request, names: list[str], policy: Policy) -> Answering:
    """Answers what the codec can check."""
    tried: list[Attempt] = []
    # Where the router is unsure, its two likeliest are asked before either has to try again.
    together = names[:2] if route.confidence < policy.sure else names[:1]
    rounds = [[Ask(name, text) for name in together]]
    # What a correction calls a notation means the same as the notation's own name, which the models know better.
    plain = ""
    if request.learned and request.span is not None:
        plain = in_plain_words(request.span.text, request.source, request.target)
    for name in names:
        if name not in together:
            rounds.append([Ask(name, text)])
        if plain:
            rounds.append([Ask(name, plain)])
        if policy.samples:
            rounds.append([Ask(name, text, draw) for draw in range(1, policy.samples + 1)])
    for asks in rounds:
        replies = yield asks
        given = [_attempt(text, request, each, reply) for each, reply in zip(asks, replies, strict=True)]
        tried += given
        right = next((attempt for attempt in given if attempt.verified), None)
        if right is not None:
            # Everything verified means the same, and nothing else does.
            sure = sum(attempt.verified for attempt in tried) / len(tried)
            return Answer(text, right.text, right.specialist, sure, True, "", route, tuple(tried))
    return _abstained(text, route, f"no answer of {len(tried)} was right: {tried[0].reason}", tried)


def _attempt(text: str, request: Request, ask: Ask, reply: Reply) -> Attempt:
    if reply.problem:
        return Attempt(ask.specialist, "", ask.draw > 0, False, reply.problem)
    told = verify(text, reply.text, request.target, request.source)
    # A verified answer is given as the codec spells it.
    return Attempt(ask.specialist, told.text or reply.text, ask.draw > 0, told.verified, told.reason)


def _voted(text: str, route: Route, names: list[str], policy: Policy) -> Answering:
    """Answers what the codec cannot check: how many of several attempts agree says how sure it is."""
    first = names[0]
    asks = [Ask(first, text, draw) for draw in range(policy.votes + 1)]
    if route.confidence < policy.sure:
        asks += [Ask(name, text) for name in names[1:2]]
    replies = yield asks
    tried = [
        Attempt(ask.specialist, reply.text, ask.draw > 0, False, reply.problem)
        for ask, reply in zip(asks, replies, strict=True)
    ]
    best = tried[0]
    if best.reason:
        return _abstained(text, route, best.reason, tried)
    sure = sum(attempt.text == best.text for attempt in tried) / len(tried)
    if not best.text or sure < policy.agreement:
        why = f"{sure:.0%} of {len(tried)} attempts agree" if best.text else "the answer is empty"
        return _abstained(text, route, why, tried)
    return Answer(text, best.text, first, sure, False, "the codec cannot check it", route, tuple(tried))


def _abstained(text: str, route: Route, reason: str, tried: Sequence[Attempt] = ()) -> Answer:
    return Answer(text, "", "", 0.0, False, reason, route, tuple(tried))
