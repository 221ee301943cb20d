"""Mixtures of an adapter's weights before and after."""

from __future__ import annotations

import pytest
import torch

from specmoe.specialists.learning import UpdateSettings
from specmoe.specialists.learning.blend import Blend


@pytest.fixture
def weights():
    return [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.ones(4))]


def moved(weights):
    blend = Blend(weights)
    with torch.no_grad():
        for weight in weights:
            weight += 8
    return blend


def test_the_first_good_mixture_stays(weights):
    blend, seen = moved(weights), []

    def good():
        seen.append(float(weights[0][0, 0]))
        return seen[-1] < 5

    assert blend.find((0.75, 0.5, 0.25), good)
    assert seen == [6, 4]
    assert weights[0].eq(4).all() and weights[1].eq(5).all()


def test_where_none_is_good_the_weights_stay_as_they_came(weights):
    blend = moved(weights)
    assert not blend.find((0.75, 0.5), lambda: False)
    assert weights[0].eq(8).all() and weights[1].eq(9).all()


def test_as_before_for_a_while_and_after_an_error(weights):
    blend = moved(weights)
    with pytest.raises(KeyError), blend.as_before():
        assert weights[0].eq(0).all() and weights[1].eq(1).all()
        raise KeyError
    assert weights[0].eq(8).all() and weights[1].eq(9).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"blends": (0.5, 1.0)}, "blends: expected shares"), ({"anchor": -1.0}, "anchor: expected at least 0")],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        UpdateSettings(**wrong)
