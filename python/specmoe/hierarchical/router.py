"""The two-level router: first the group, then the expert in it; P(expert) = P(group) P(expert | group)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..routing import LinearRouter, Route, RouterSettings, train_router
from ..routing.features import hashed_features
from ..training.data import GROUPS

GROUP_FILE = "groups.npz"


@dataclass
class TwoLevelRouter:
    """A linear router among the groups, and one inside each group of several experts.

    Attributes:
        groups: chooses the group.
        members: each group's experts, in order.
        inside: chooses the expert in a group; groups of one expert have none.
    """

    groups: LinearRouter
    members: dict[str, tuple[str, ...]]
    inside: dict[str, LinearRouter]

    @property
    def domains(self) -> tuple[str, ...]:
        """The experts' names, group after group."""
        return tuple(name for members in self.members.values() for name in members)

    def route(self, text: str) -> Route:
        """Returns the choice for a query; it abstains where either level of the likeliest expert does."""
        # Both levels look at the same features, which take longer to make than to weigh.
        features = hashed_features(text, len(self.groups.weight))
        inside = {name: router.route_features(features) for name, router in self.inside.items()}
        return self._combined(self.groups.route_features(features), inside)

    def explain(self, text: str) -> Route:
        """Returns the choice with its reasons, those for the group first."""
        return self._combined(self.groups.explain(text), {name: r.explain(text) for name, r in self.inside.items()})

    def group_probabilities(self, text: str) -> dict[str, float]:
        """Returns the probability of each group."""
        return self.groups.route(text).probabilities

    def _combined(self, group: Route, inside: Mapping[str, Route]) -> Route:
        probabilities = {
            member: group.probabilities[name] * (inside[name].probabilities[member] if name in inside else 1.0)
            for name, members in self.members.items()
            for member in members
        }
        best = max(probabilities, key=probabilities.__getitem__)
        home = next(name for name, members in self.members.items() if best in members)
        sure = group.domain == home and (home not in inside or inside[home].domain == best)
        reasons = tuple(dict.fromkeys(group.reasons + (inside[home].reasons if home in inside else ())))
        return Route(best if sure else None, probabilities[best], probabilities, reasons)

    def save(self, folder: Path) -> None:
        """Writes one file a level into the folder; the groups' file, which is the last, makes it complete."""
        for name, router in self.inside.items():
            router.save(folder / f"{name}.npz")
        self.groups.save(folder / GROUP_FILE)

    @classmethod
    def load(cls, folder: Path, groups: Mapping[str, Sequence[str]] = GROUPS) -> TwoLevelRouter:
        """Reads what `save` wrote.

        Args:
            folder: where the files are.
            groups: the experts of each group.

        Raises:
            FileNotFoundError: a level's file is missing.
            ValueError: a file is damaged, or was written for other experts.
        """
        router = cls(
            LinearRouter.load(folder / GROUP_FILE),
            {name: tuple(members) for name, members in groups.items()},
            {name: LinearRouter.load(folder / f"{name}.npz") for name, members in groups.items() if len(members) > 1},
        )
        for path, level, wanted in (
            (folder / GROUP_FILE, router.groups, tuple(groups)),
            *((folder / f"{name}.npz", level, tuple(groups[name])) for name, level in router.inside.items()),
        ):
            if level.domains != wanted:
                raise ValueError(f"router: {path}: expected {', '.join(wanted)}, got {', '.join(level.domains)}")
            if len(level.weight) != len(router.groups.weight):
                raise ValueError(f"router: {path}: expected {len(router.groups.weight)} rows, got {len(level.weight)}")
        return router


def train_two_level(
    prompts: Mapping[str, Sequence[str]],
    groups: Mapping[str, Sequence[str]] = GROUPS,
    settings: RouterSettings | None = None,
) -> TwoLevelRouter:
    """Returns a trained and calibrated two-level router; each level takes about as long as a router of `train_router`.

    Args:
        prompts: of each expert's domain.
        groups: the experts of each group.
        settings: of every level.

    Raises:
        ValueError: a domain has neither prompts nor phrasings.
    """
    of_group = {member: name for name, members in groups.items() for member in members}
    return TwoLevelRouter(
        train_router(prompts, settings, of_group),
        {name: tuple(members) for name, members in groups.items()},
        {
            name: train_router(prompts, settings, {member: member for member in members})
            for name, members in groups.items()
            if len(members) > 1
        },
    )
