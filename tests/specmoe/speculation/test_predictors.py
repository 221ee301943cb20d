from __future__ import annotations

import numpy as np
import pytest
import torch

from specmoe.speculation import (
    LinkCounts,
    MovingAverage,
    NextGate,
    Observation,
    Oracle,
    Predictor,
    PreviousToken,
    RankCalibration,
    RanksExperts,
    RouteTrace,
    SeesTokens,
    StaticFrequency,
    TokenTable,
)
from specmoe.speculation.counting import membership, used_by_any

L, E, K = 4, 8, 2


def top(chances: np.ndarray | None, count: int = K) -> set[int]:
    assert chances is not None
    return set(np.argsort(-chances)[:count].tolist())


def linked_trace(sequences: int, length: int, seed: int) -> RouteTrace:
    """Routes with a rule: a layer's experts are the ones before plus 1, or by chance others."""
    rng = np.random.default_rng(seed)
    tokens = []
    for _ in range(sequences * length):
        path = [rng.permutation(E)[:K]]
        for _ in range(L - 1):
            follows = (path[-1] + 1) % E
            path.append(follows if rng.random() < 0.9 else rng.permutation(E)[:K])
        tokens.append(path)
    return RouteTrace(np.array(tokens), np.arange(sequences + 1) * length, E)


def test_used_by_any_and_membership_count_each_expert_once() -> None:
    assert np.flatnonzero(used_by_any(np.array([[1, 3], [3, E]]), E)).tolist() == [1, 3]
    assert membership(np.array([[0, 2], [1, 0]]), 3).tolist() == [[1, 0, 1], [1, 1, 0]]


class TestRankCalibration:
    def test_begins_with_a_prior_that_decreases(self) -> None:
        chances = RankCalibration(1, E, K).probabilities(0, np.arange(E)[None])
        assert top(chances) == {E - 1, E - 2}
        assert 0 < chances.min() and chances.max() <= 1

    def test_learns_how_often_each_rank_is_right(self) -> None:
        calibration = RankCalibration(1, E, K)
        rng = np.random.default_rng(0)
        for _ in range(2000):
            scores = rng.normal(size=(1, E))
            ranked = np.argsort(-scores[0])
            calibration.probabilities(0, scores)
            # The best is always used, the second with probability 0.3, else the last.
            calibration.learn(0, np.array([[ranked[0], ranked[1] if rng.random() < 0.3 else ranked[-1]]]))
        chances = np.sort(calibration.probabilities(0, np.arange(E)[None]))[::-1]
        assert chances[0] > 0.99
        assert chances[1] == pytest.approx(0.7, abs=0.05) and chances[2] == pytest.approx(0.3, abs=0.05)
        assert chances[3:].max() < 0.01

    def test_several_tokens_add_up(self) -> None:
        calibration = RankCalibration(1, E, K)
        one = calibration.probabilities(0, np.arange(E)[None])
        two = calibration.probabilities(0, np.tile(np.arange(E), (2, 1)))
        assert np.allclose(two, 1 - (1 - one) ** 2)

    def test_outcome_without_prediction_is_ignored(self) -> None:
        calibration = RankCalibration(1, E, K)
        before = calibration.probabilities(0, np.arange(E)[None])
        calibration.reset()
        calibration.learn(0, np.array([[0, 1]]))
        calibration.probabilities(0, np.arange(E)[None])
        calibration.learn(0, np.array([[0, 1], [2, 3]]))
        assert np.array_equal(calibration.probabilities(0, np.arange(E)[None]), before)

    @pytest.mark.parametrize("shape", [(0, E), (E,)])
    def test_refuses_other_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="scores: expected shape"):
            RankCalibration(1, E, K).probabilities(0, np.zeros(shape))


class TestNextGate:
    def test_asks_the_next_layers_scorer_with_this_layers_residual(self) -> None:
        seen = []

        def scorer(residual: torch.Tensor) -> torch.Tensor:
            seen.append(residual)
            return residual @ torch.eye(E)

        predictor = NextGate({0: scorer, 1: scorer}, E, K)
        residual = torch.zeros(1, E)
        residual[0, [5, 2]] = 1.0
        predictor.observe(Observation(0, np.array([[1, 2]]), residual))
        assert top(predictor.predict(1)) == {5, 2}
        assert seen == [residual]

    def test_knows_nothing_of_other_layers_or_without_a_residual(self) -> None:
        predictor = NextGate({n: lambda r: r for n in range(3)}, E, K)
        assert predictor.predict(0) is None
        predictor.observe(Observation(0, np.array([[1, 2]]), torch.zeros(1, E)))
        assert predictor.predict(2) is None and predictor.predict(0) is None
        predictor.observe(Observation(1, np.array([[1, 2]])))
        assert predictor.predict(2) is None
        predictor.observe(Observation(1, np.zeros((0, 2), int), torch.zeros(0, E)))
        assert predictor.predict(2) is None
        predictor.observe(Observation(2, np.array([[1, 2]]), torch.zeros(1, E)))
        assert predictor.predict(3) is None
        predictor.observe(Observation(0, np.array([[1, 2]]), torch.zeros(1, E)))
        predictor.reset()
        assert predictor.predict(1) is None


class TestPreviousToken:
    def test_repeats_the_last_choice(self) -> None:
        predictor = PreviousToken(L, E, K)
        assert predictor.predict(1) is None
        predictor.observe(Observation(1, np.array([[0, 1], [6, 3]])))
        chances = predictor.predict(1)
        assert top(chances) == {6, 3}
        predictor.observe(Observation(1, np.array([[2, E]])))
        assert 2 in top(predictor.predict(1))
        predictor.reset()
        assert predictor.predict(1) is None


class TestStaticFrequency:
    def test_returns_the_frequencies(self) -> None:
        frequency = np.random.default_rng(0).random((L, E))
        predictor = StaticFrequency(frequency)
        predictor.observe(Observation(0, np.array([[0, 1]])))
        predictor.reset()
        assert np.array_equal(predictor.predict(2), frequency[2])  # type: ignore[arg-type]
        assert predictor.predict(L) is None


class TestLinkCounts:
    def test_finds_links_between_layers_on_other_sequences(self) -> None:
        predictor = LinkCounts(linked_trace(20, 30, seed=1))
        test = linked_trace(4, 30, seed=2)
        right = total = 0
        for token in test.experts:
            for layer in range(L):
                if layer:
                    right += len(top(predictor.predict(layer)) & set(token[layer].tolist()))
                    total += K
                predictor.observe(Observation(layer, token[layer][None]))
        # The rule holds in 90 % of the steps.
        assert right / total > 0.85

    def test_uses_the_previous_token(self) -> None:
        rng = np.random.default_rng(0)
        experts = np.stack([np.stack([rng.permutation(E)[:K]] * 1)] * 50).repeat(1, axis=1)
        other = np.stack([np.array([[6, 7]])] * 50)
        trace = RouteTrace(np.concatenate([experts, other]), np.array([0, 50, 100]), E)
        predictor = LinkCounts(trace)
        predictor.observe(Observation(0, np.array([[6, 7]])))
        assert top(predictor.predict(0)) == {6, 7}
        predictor.observe(Observation(0, experts[0]))
        assert top(predictor.predict(0)) == set(experts[0, 0].tolist())

    def test_without_history_it_is_frequency(self) -> None:
        trace = RouteTrace(np.array([[[3, 1]], [[3, 1]], [[3, 2]]]), np.array([0, 3]), E)
        predictor = LinkCounts(trace)
        assert top(predictor.predict(0)) == {3, 1}
        assert predictor.predict(1) is None

    def test_looks_further_back_where_asked(self) -> None:
        """Layer 2 repeats layer 0; layer 1 is chance."""
        rng = np.random.default_rng(0)
        draws = np.stack([np.stack([rng.permutation(E)[:K] for _ in range(2)]) for _ in range(400)])
        trace = RouteTrace(np.stack([draws[:, 0], draws[:, 1], draws[:, 0]], 1), np.array([0, 400]), E)
        right = {}
        for path in (1, 2):
            predictor = LinkCounts(trace, path=path)
            right[path] = 0
            for token in trace.experts[:100]:
                for layer in range(3):
                    right[path] += len(top(predictor.predict(layer)) & set(token[layer].tolist())) * (layer == 2)
                    predictor.observe(Observation(layer, token[layer][None]))
        assert right[2] > 190 and right[1] < 120
        with pytest.raises(ValueError, match="path: expected at least 1"):
            LinkCounts(trace, path=0)

    def test_refuses_an_empty_trace(self) -> None:
        with pytest.raises(ValueError, match="at least one token"):
            LinkCounts(RouteTrace(np.zeros((0, L, K), int), np.array([0]), E))

    def test_adds_the_token_where_it_is_told(self) -> None:
        trace = token_trace()
        predictor = LinkCounts(trace)
        assert isinstance(predictor, SeesTokens)
        for token in (3, 1, 2):
            predictor.begin(np.array([token]))
            assert top(predictor.predict(0)) == {token, token + 1}
            predictor.observe(Observation(0, np.array([[token, token + 1]])))


def token_trace() -> RouteTrace:
    """Tokens 0 to 4, each with experts of its own; the order is random."""
    tokens = np.random.default_rng(0).integers(0, 5, 200)
    experts = np.stack([tokens, tokens + 1], axis=1)[:, None]
    return RouteTrace(experts, np.array([0, 120, 200]), E, tokens=tokens)


class TestTokenTable:
    def test_gives_what_the_token_used(self) -> None:
        predictor = TokenTable(token_trace())
        assert isinstance(predictor, SeesTokens) and predictor.predict(0) is None
        predictor.begin(np.array([2]))
        chances = predictor.predict(0)
        assert top(chances) == {2, 3} and chances is not None and chances[2] > 0.9
        predictor.begin(np.array([2, 4]))
        assert top(predictor.predict(0), 4) == {2, 3, 4, 5}
        predictor.observe(Observation(0, np.array([[2, 3], [4, 5]])))
        assert predictor.predict(0) is None

    def test_an_unknown_token_is_average(self) -> None:
        predictor = TokenTable(token_trace())
        predictor.begin(np.array([77]))
        chances = predictor.predict(0)
        assert chances is not None and chances.sum() == pytest.approx(2.0)
        assert predictor.predict(1) is None

    def test_refuses_a_trace_without_tokens(self) -> None:
        with pytest.raises(ValueError, match="expected token ids"):
            TokenTable(linked_trace(1, 3, 0))


class TestMovingAverage:
    def test_follows_the_last_uses(self) -> None:
        predictor = MovingAverage(1, E, K, decay=0.5)
        assert isinstance(predictor, RanksExperts)
        assert predictor.predict(0) is None and predictor.keep(0) is None
        for experts in ([0, 1], [0, 2], [0, 2], [3, 2]):
            predictor.observe(Observation(0, np.array([experts])))
        kept = predictor.keep(0)
        assert kept is not None and np.argsort(-kept)[:4].tolist() == [2, 3, 0, 1]
        assert top(predictor.predict(0)) == {2, 3}
        predictor.reset()
        assert predictor.keep(0) is not None

    def test_refuses_a_decay_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="decay: expected"):
            MovingAverage(1, E, K, decay=1.0)


class TestOracle:
    def test_repeats_the_record_visit_by_visit(self) -> None:
        passes = [[np.array([[0, 1], [1, 2]]), np.array([[3, 4]])], [np.array([[5, 6]]), np.array([[6, 7]])]]
        predictor = Oracle(passes, E)
        assert np.flatnonzero(predictor.predict(0)).tolist() == [0, 1, 2]  # type: ignore[arg-type]
        predictor.observe(Observation(0, passes[0][0]))
        assert np.flatnonzero(predictor.predict(1)).tolist() == [3, 4]  # type: ignore[arg-type]
        assert np.flatnonzero(predictor.predict(0)).tolist() == [5, 6]  # type: ignore[arg-type]
        predictor.observe(Observation(0, passes[1][0]))
        assert predictor.predict(0) is None and predictor.predict(2) is None
        predictor.reset()
        assert np.flatnonzero(predictor.predict(0)).tolist() == [0, 1, 2]  # type: ignore[arg-type]


def test_all_keep_the_interface() -> None:
    trace = linked_trace(2, 5, seed=0)
    predictors: list[Predictor] = [
        NextGate({0: lambda r: r}, E, K),
        PreviousToken(L, E, K),
        StaticFrequency(np.ones((L, E)) / E),
        StaticFrequency.count(trace),
        MovingAverage(L, E, K),
        LinkCounts(trace),
        Oracle([[layer[None] for layer in token] for token in trace.experts], E),
    ]
    for predictor in predictors:
        predictor.reset()
        for token in trace.experts:
            for layer in range(L):
                predictor.observe(Observation(layer, token[layer][None], torch.randn(1, E)))
                chances = predictor.predict((layer + 1) % L)
                if chances is not None:
                    assert chances.shape == (E,) and (chances >= 0).all() and (chances <= 1).all()
