"""Which specialist a query belongs to: by its words and its value, or by a trained router."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..routing import LinearRouter, Route, RouterSettings, train_router
from .corpora import SPECIALISTS, Example
from .corpora.generate import route_of
from .requests import has_gpu_contract, understand

_ASKS_FOR_ROUTE = re.compile(r"\b(?:who|which (?:model|specialist)|route|choose|specialist)\b", re.IGNORECASE)


class RuleRouter:
    """Looks for the value, the notations that are named, and contracts of 900 to 902; always certain."""

    domains = tuple(SPECIALISTS)

    def route(self, text: str) -> Route:
        """Returns the choice for a query; an empty one is abstained from."""
        if not text.strip():
            return Route(None, 1 / len(self.domains), dict.fromkeys(self.domains, 1 / len(self.domains)))
        name, reason = self._choice(text)
        return Route(name, 1.0, {each: float(each == name) for each in self.domains}, (reason,))

    def _choice(self, text: str) -> tuple[str, str]:
        try:
            request = understand(text)
        except ValueError:
            return "coordinator", "too long to look for a value"
        if request.span is None:
            return "coordinator", "no value"
        if _ASKS_FOR_ROUTE.search(text[: request.span.start]):
            return "coordinator", "asks for a specialist"
        if any(map(has_gpu_contract, request.span.readings.values())):
            return "gpu", "a contract of 900 to 902"
        return route_of(request.source, request.target), f"{request.source} to {request.target or 'words'}"


@dataclass
class TrainedRouter:
    """A linear router over the hashed n-grams of a query and of what the codec sees in it.

    Attributes:
        linear: the router.
    """

    linear: LinearRouter

    @property
    def domains(self) -> tuple[str, ...]:
        """The specialists' names."""
        return self.linear.domains

    def route(self, text: str) -> Route:
        """Returns the choice for a query; an empty one, or an uncertain one, is abstained from."""
        return self.linear.route(marked(text) if text.strip() else text)


def train_specialist_router(examples: Iterable[Example], settings: RouterSettings | None = None) -> TrainedRouter:
    """Returns a router trained on the prompts of corpora.

    Args:
        examples: of the training side.
        settings: how to train; None for the defaults.
    """
    prompts: dict[str, list[str]] = {name: [] for name in SPECIALISTS}
    for example in examples:
        prompts[example.route].append(marked(example.prompt))
    return TrainedRouter(train_router(prompts, settings, labels={name: name for name in SPECIALISTS}))


def marked(text: str) -> str:
    """Returns a query with words for what its value shows: source and target, and contracts of 900 to 902.

    The router sees every number as 0 and sums over features, so that neither an id nor a pair of notations is one. The
    words come three times: beside the n-grams of a long query once would count for little.
    """
    try:
        request = understand(text)
    except ValueError:
        return text
    if request.span is None:
        mark = "novalue"
    elif _ASKS_FOR_ROUTE.search(text[: request.span.start]):
        mark = "asksroute"
    elif any(map(has_gpu_contract, request.span.readings.values())):
        mark = "gpucontract"
    else:
        mark = f"{request.source}to{request.target or 'words'}".replace("-", "")
    return f"{text} {mark} {mark} {mark}"
