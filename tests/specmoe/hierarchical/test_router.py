"""The router in two levels."""

from __future__ import annotations

import numpy as np
import pytest

from specmoe.hierarchical import TwoLevelRouter, train_two_level
from specmoe.routing import LinearRouter, RouterSettings
from specmoe.training.data import DOMAINS, GROUPS


@pytest.fixture(scope="module")
def router():
    return train_two_level({}, settings=RouterSettings(each=4, epochs=3))


@pytest.mark.parametrize(
    ("query", "domain"),
    [
        ("What is 15 + 27?", "math"),
        ("Write a Python function to reverse a string.", "code"),
        ("Solve: x + 5 = 12", "math"),
        ("Hello, how are you?", "conversation"),
    ],
)
def test_known_queries(router, query, domain):
    said = router.route(query)
    assert max(said.probabilities, key=said.probabilities.get) == domain
    assert router.explain(query).probabilities == said.probabilities


def test_the_probability_of_an_expert_is_that_of_its_group_times_its_own_inside(router):
    query = "Explain why the sum of two odd numbers is even."
    said = router.route(query)
    assert sum(said.probabilities.values()) == pytest.approx(1.0)
    groups = router.group_probabilities(query)
    for group, members in GROUPS.items():
        assert sum(said.probabilities[member] for member in members) == pytest.approx(groups[group])
    inside = router.inside["analytical"].route(query).probabilities
    assert said.probabilities["math"] == pytest.approx(groups["analytical"] * inside["math"])
    assert said.confidence == max(said.probabilities.values())


def test_it_abstains_where_either_level_does(router):
    query = "What is 15 + 27?"
    assert router.route("").domain is None

    def with_thresholds(group: float, inside: float) -> TwoLevelRouter:
        def strict(linear: LinearRouter, threshold: float) -> LinearRouter:
            return LinearRouter(linear.weight, linear.bias, linear.domains, linear.temperature, threshold)

        levels = {name: strict(level, inside) for name, level in router.inside.items()}
        return TwoLevelRouter(strict(router.groups, group), router.members, levels)

    assert with_thresholds(0.0, 0.0).route(query).domain == "math"
    assert with_thresholds(1.01, 0.0).route(query).domain is None
    assert with_thresholds(0.0, 1.01).route(query).domain is None


def test_both_levels_are_asked_about_the_same_features(router):
    query = "Hello, can you explain why my function returns None?"
    said = router.route(query)
    assert router.group_probabilities(query) == router.groups.route(query).probabilities
    for member, p in router.inside["language"].route(query).probabilities.items():
        assert said.probabilities[member] == pytest.approx(router.group_probabilities(query)["language"] * p)


def test_saved_bytes_come_back(router, tmp_path):
    router.save(tmp_path)
    back = TwoLevelRouter.load(tmp_path)
    assert set(back.domains) == set(DOMAINS)
    assert np.array_equal(back.groups.weight, router.groups.weight)
    assert back.route("hello") == router.route("hello")
    with pytest.raises(ValueError, match=r"groups\.npz: expected left, right, got analytical"):
        TwoLevelRouter.load(tmp_path, {"left": ("math",), "right": ("code",)})
    fewer = LinearRouter(router.inside["language"].weight[:64], np.zeros(2), GROUPS["language"])
    fewer.save(tmp_path / "language.npz")
    with pytest.raises(ValueError, match=r"language\.npz: expected \d+ rows, got 64"):
        TwoLevelRouter.load(tmp_path)
    (tmp_path / "analytical.npz").unlink()
    with pytest.raises(FileNotFoundError):
        TwoLevelRouter.load(tmp_path)
