"""`SpecialistRouter(folder).query("Convert to LC-R: [1, 2, 3]")`: a family of specialists that answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...notation.search import MAX_LENGTH
from ...offload.budget import format_bytes, parse_bytes
from ...routing import LinearRouter, Route
from ..corpora import SPECIALISTS, CorpusSettings, generate
from ..learning.rules import LearnedRules
from ..routing import RuleRouter, TrainedRouter, train_specialist_router
from .answer import Answer
from .answering import Policy, answer_all
from .generation import Asking
from .members import members_of
from .memory import keep_large_blocks_apart, resident_memory
from .residents import Residents

ROUTING = ("rules", "trained", "confidence")
ROUTER_FILE = "router.npz"
# Prompts of each corpus that the trained router learns from.
_ROUTER_PROMPTS = 2000
# What a forward needs besides the models: activations, the keys and values of a batch, one weight in full precision.
_WORKING = 128 << 20


class SpecialistRouter:
    """A coordinator and specialists within a memory budget; use it as a context manager, or `close` it."""

    def __init__(
        self,
        folder: str | Path,
        memory: str | int = "3GiB",
        *,
        routing: str = "rules",
        policy: Policy | None = None,
        reserve: int | None = None,
        batch_size: int = 16,
    ) -> None:
        """Opens a family; models are loaded when they are needed.

        Args:
            folder: what `specmoe specialists train` has written.
            memory: what the process may have in memory with its models, such as "3GiB".
            routing: "rules" looks for notations; "trained" is a trained router; with "confidence" that router's two
                likeliest are asked where it is not sure.
            policy: how hard an answer is tried for; None for the defaults.
            reserve: bytes of the budget that are not the models'; None for what the process has in memory now, and
                128 MiB to work with.
            batch_size: rows of a batch at most.

        Raises:
            FamilyError: a model is missing.
            ValueError: the budget does not hold the coordinator and a specialist, or an unknown kind of routing.
        """
        if routing not in ROUTING:
            raise ValueError(f"routing: expected {', '.join(ROUTING)}, got {routing!r}")
        self.folder = Path(folder).expanduser()
        self.policy = policy or Policy()
        if routing == "trained":
            # One model at a time: the router's choice counts however sure it is.
            self.policy = dataclasses.replace(self.policy, sure=0.0)
        self.memory = parse_bytes(memory)
        members = members_of(self.folder)
        keep_large_blocks_apart()
        self.reserve = resident_memory() + _WORKING if reserve is None else reserve
        try:
            self.residents = Residents(members, self.memory - self.reserve)
        except ValueError as error:
            raise ValueError(
                f"{error} of {format_bytes(self.memory)}, of which {format_bytes(self.reserve)} are the process's own"
            ) from None
        self.rules = LearnedRules(self.folder)
        self._asking = Asking(self.residents, self.policy, batch_size, self.rules.corrected)
        self._router: RuleRouter | TrainedRouter = RuleRouter() if routing == "rules" else trained_router(self.folder)

    def route(self, text: str) -> Route:
        """Returns which specialist a query belongs to."""
        learned = self.rules.specialist(text)
        if learned is not None and learned in self.residents.members:
            return Route(learned, 1.0, {learned: 1.0}, ("a corrected phrasing",))
        # A router takes time for each character, and none this long is answered.
        return self._router.route(text[: MAX_LENGTH + 1])

    def expect(self, text: str) -> None:
        """Loads the specialist of a query in the background where the route is likely: call it with what is typed."""
        route = self.route(text)
        name = route.domain
        if name is not None and name in self.residents.members and route.confidence >= self.policy.sure:
            self.residents.expect(name)

    def query(self, text: str) -> Answer:
        """Returns the answer to a query.

        Raises:
            ValueError: a model's files are damaged.
        """
        return self.query_batch([text])[0]

    def query_batch(self, texts: Sequence[str]) -> list[Answer]:
        """Returns the answers to queries; what shares a base is computed in one batch, each row with its specialist.

        Raises:
            ValueError: a model's files are damaged.
        """
        # Half a surrogate pair, as a terminal may send it, is no character of any text.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        routes = [self.route(text) for text in texts]
        members = tuple(self.residents.members)
        return answer_all(texts, routes, members, self._asking, self.policy, self.rules.understand)

    def close(self) -> None:
        """Takes all models out of memory."""
        self.residents.close()

    def __enter__(self) -> SpecialistRouter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def trained_router(folder: Path) -> TrainedRouter:
    """Returns the family's trained router; the first call trains it on the corpora, which takes some seconds.

    Raises:
        ValueError: its file is damaged.
    """
    path = folder / ROUTER_FILE
    if path.is_file():
        return TrainedRouter(LinearRouter.load(path))
    settings = CorpusSettings(size=_ROUTER_PROMPTS)
    router = train_specialist_router(e for name in SPECIALISTS for e in generate(name, "train", settings))
    router.linear.save(path)
    return router
