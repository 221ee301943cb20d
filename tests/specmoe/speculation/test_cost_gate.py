"""The gate takes what pays by its formula, and nothing where nothing pays."""

from __future__ import annotations

import pytest

from specmoe.speculation import CostGate
from specmoe.speculation.cost_gate import ENOUGH, PROBE_EVERY, RunningMean

CANDIDATES = [(3, 0.9), (1, 0.6), (4, 0.3), (2, 0.1)]


def measured(compute: float, load: float, enabled: bool = True) -> CostGate:
    gate = CostGate(enabled)
    gate.record_compute(compute)
    gate.record_load(load)
    return gate


def chosen(gate: CostGate) -> list[int]:
    return [expert for expert, _ in gate.choose(CANDIDATES)]


def test_running_mean_begins_at_the_first_value() -> None:
    mean = RunningMean(newest=0.5)
    assert mean.value is None
    mean.add(4.0)
    assert mean.value == 4.0
    mean.add(2.0)
    assert mean.value == 3.0


@pytest.mark.parametrize(
    ("compute", "load", "expected"),
    [
        # All loads fit into the window: even the unlikely cost nothing.
        (4.0, 1.0, [3, 1, 4, 2]),
        # One and a half fit: the first is free; the second gains 0.6 * 0.5 and risks 0.4 * 0.5.
        (1.5, 1.0, [3, 1]),
        # Half of one fits: 0.9 * 0.5 against 0.1 * 0.5; nothing of a second would.
        (0.5, 1.0, [3]),
        # A twentieth of one fits: 0.9 * 0.05 against 0.1 * 0.95 is no gain.
        (0.05, 1.0, []),
        (0.0, 1.0, []),
    ],
)
def test_choose_takes_what_pays(compute: float, load: float, expected: list[int]) -> None:
    assert chosen(measured(compute, load)) == expected


def test_unlikely_guesses_do_not_pay_when_they_overrun() -> None:
    gate = measured(1.0, 1.5)
    # 0.35 * 1.0 < 0.65 * 0.5 is false, 0.3 * 1.0 < 0.7 * 0.5 is true.
    assert gate.choose([(0, 0.35)]) and not gate.choose([(0, 0.3)])


def test_overrun_costs_only_when_layers_miss() -> None:
    gate = measured(0.05, 1.0)
    assert chosen(gate) == []
    gate.record_demand(False)
    assert chosen(gate) == [3]


def test_probabilities_are_corrected_by_what_came_true() -> None:
    gate = measured(0.5, 1.0)
    assert chosen(gate) == [3]
    gate.record_outcomes([(0.9, False)] * (ENOUGH - 1))
    assert gate.trust == 1.0
    gate.record_outcomes([(0.9, False)] * 100)
    assert gate.trust < 0.01 and chosen(gate) == []
    gate.record_outcomes([(0.4, True)] * 200)
    assert gate.trust > 2.0 and chosen(gate) == [3]


def test_without_measurements_everything_is_tried() -> None:
    assert chosen(CostGate()) == [3, 1, 4, 2]


def test_disabled_takes_everything() -> None:
    gate = measured(0.0, 1.0, enabled=False)
    assert chosen(gate) == [3, 1, 4, 2]
    for _ in range(100):
        gate.record_predict(10.0)
        assert gate.worth_predicting()


def test_predictor_that_costs_more_than_it_saves_is_asked_now_and_then() -> None:
    gate = measured(1.0, 1.0)
    assert gate.worth_predicting()
    gate.choose(CANDIDATES)
    gate.record_predict(5.0)
    asked = sum(gate.worth_predicting() for _ in range(4 * PROBE_EVERY))
    assert asked == 4


def test_predictor_that_pays_is_always_asked() -> None:
    gate = measured(1.0, 1.0)
    gate.choose(CANDIDATES)
    gate.record_predict(0.01)
    assert all(gate.worth_predicting() for _ in range(50))


def test_gate_turns_on_again_when_loads_become_worth_it() -> None:
    gate = measured(0.0, 1.0)
    gate.choose(CANDIDATES)
    gate.record_predict(0.1)
    assert not gate.worth_predicting()
    for _ in range(200):
        gate.record_compute(2.0)
        if gate.worth_predicting():
            gate.choose(CANDIDATES)
    assert gate.worth_predicting()


def test_what_loads_cost_the_compute_beside_them_is_part_of_the_price() -> None:
    gate = measured(4.0, 1.0)
    assert chosen(gate) == [3, 1, 4, 2]
    for _ in range(200):
        gate.record_compute(4.0, loads=0)
        gate.record_compute(5.0, loads=2)
    # Half a second for each load: what is likelier than a half still pays.
    assert gate.slowed == pytest.approx(0.5, abs=0.05)
    assert chosen(gate) == [3, 1]
    for _ in range(2000):
        gate.record_compute(4.0, loads=0)
    assert chosen(gate) == [3, 1, 4, 2]


def test_a_predictor_is_left_alone_where_even_a_perfect_one_would_not_pay() -> None:
    gate = measured(1.0, 0.1)
    gate.record_watch(0.01)
    gate.record_predict(0.005)
    gate.choose(CANDIDATES)
    gate.record_need(3)
    assert gate.worth_watching()
    for _ in range(200):
        gate.record_need(0)
    assert sum(gate.worth_watching() for _ in range(4 * PROBE_EVERY)) == 4
    assert all(CostGate(enabled=False).worth_watching() for _ in range(8))


def test_a_predictor_is_left_alone_where_its_guesses_save_less_than_it_takes() -> None:
    gate = measured(1.0, 0.1)
    gate.record_need(2)
    gate.record_watch(0.05)
    gate.record_predict(0.01)
    gate.choose([(0, 0.01)])
    assert not gate.worth_watching()
    for _ in range(100):
        gate.choose(CANDIDATES)
    assert gate.worth_watching()


def test_windows_are_compared_with_those_of_the_same_layer() -> None:
    gate = CostGate()
    gate.record_load(1.0)
    for _ in range(200):
        # Before the first layer comes the head as well; it slows nothing.
        gate.record_compute(5.0, loads=0, layer=0)
        gate.record_compute(5.0, loads=3, layer=0)
        gate.record_compute(2.0, loads=0, layer=1)
        gate.record_compute(2.0, loads=1, layer=1)
    assert gate.slowed == pytest.approx(0.0, abs=1e-12)
    candidates = [(expert, 0.9) for expert in range(8)]
    assert len(gate.choose(candidates, 0)) == 5 and len(gate.choose(candidates, 1)) == 2
    # Of a layer that nobody measured, the mean of all is what is known.
    assert len(gate.choose(candidates, 2)) == 4


def test_passes_unlike_the_one_before_count_where_nothing_else_is_known() -> None:
    gate = CostGate()
    gate.record_load(1.0)
    gate.record_unlike(1.0)
    assert [expert for expert, _ in gate.choose(CANDIDATES, 0)] == [3]
    gate.record_compute(2.0, loads=0, layer=0)
    for _ in range(100):
        gate.record_unlike(100.0)
    assert [expert for expert, _ in gate.choose(CANDIDATES, 0)] == [3, 1]
