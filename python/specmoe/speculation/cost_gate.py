"""Which predictions are worth loading: speculation is priced, and switched off where it would lose.

With a window of C seconds of compute until the next layer asks, and L seconds to load one expert, the j-th load (from
0) that is started now runs from j*L to (j+1)*L:

- if the expert is wanted (probability p), the part of the load that lies inside the window is time saved:
  min(L, max(0, C - j*L));
- if it is not, the part that lies beyond the window is in the way of the next layer's own misses:
  min(L, max(0, (j+1)*L - C)), times m, how often a layer misses at all.

A load is taken while p * saved > (1 - p) * lost + slowed, likeliest first; `slowed` is what one load beside a layer was
measured to slow its compute by (readers take processor time and memory bandwidth). Windows are compared with those of
the same layer without a load, since the one before the first layer also holds the model's head and the sampling; only
passes of as many tokens as the one before are told of, so that a prompt says nothing about decoding. All loads together
must save more
than the prediction itself costs; where they have not, the predictor is asked only now and then, to see whether that
changed.

A predictor costs something even where it is not asked: it is told every layer's routing (to watch). What it could save
at most is what layers would load, guesses aside, times L. Where that, or what guesses have saved and a better eviction
may save, is less than its cost, it rests for whole passes, but for one now and then.

A predictor is calibrated over all experts, but only those that are not resident are candidates, and they come true
less often: the cache already holds the easy ones. So p is corrected by how often candidates came true so far.
A wrong load's slot is the first to be evicted (the cache sees to that), so it is priced at nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

# Weight of the newest measurement in the running averages: about the last 20.
NEWEST = 0.05
# Fewer outcomes than this say nothing about a predictor yet.
ENOUGH = 20
# While off, one layer in this many is predicted all the same, or one pass in this many watched.
PROBE_EVERY = 16
# What a layer without loads leaves of what is known about them.
STILL_KNOWN = 0.998
# What a predictor's advice on eviction saves of the loads, for the decision whether watching is worth it.
EVICTION_SAVES = 0.1


class RunningMean:
    """An exponential moving average that starts at its first value."""

    def __init__(self, newest: float = NEWEST) -> None:
        self.value: float | None = None
        self._newest = newest

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + self._newest * (value - self.value)


class CostGate:
    """Chooses among predicted experts by what loading them would save.

    Args:
        enabled: with False every candidate is loaded: the arm that shows what the gate is worth.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.compute = RunningMean()
        self.load = RunningMean()
        self.predict = RunningMean()
        self.saved = RunningMean()
        self.misses = RunningMean()
        self.watch = RunningMean()
        self.need = RunningMean()
        # Seconds by which one load slows a layer's compute.
        self.slowed = 0.0
        # By layer: the window before it, and that window where nothing was loaded in it.
        self._window: dict[int, RunningMean] = {}
        self._alone: dict[int, RunningMean] = {}
        self._expected = RunningMean()
        self._came_true = RunningMean()
        self._outcomes = 0
        self._skipped = 0
        self._rested = 0

    def record_compute(self, seconds: float, loads: int | None = None, layer: int = -1) -> None:
        """Note the time between a layer's experts being ready and the next layer asking for its own.

        Args:
            seconds: that time.
            loads: how many guesses were loaded meanwhile, or are being loaded; None where it is unknown.
            layer: the layer that asks.
        """
        self.compute.add(seconds)
        self._window.setdefault(layer, RunningMean()).add(seconds)
        alone = self._alone.setdefault(layer, RunningMean())
        if loads == 0:
            alone.add(seconds)
            # What was found is forgotten slowly, so that it is tried again.
            self.slowed *= STILL_KNOWN
        elif loads and alone.value is not None:
            self.slowed += NEWEST * (max(0.0, (seconds - alone.value) / loads) - self.slowed)

    def record_unlike(self, seconds: float) -> None:
        """Note such a time of a pass that is unlike the one before: for layers of which nothing better is known."""
        self.compute.add(seconds)

    def record_load(self, seconds: float) -> None:
        """Note the time that one expert took to load, others in flight being counted once."""
        self.load.add(seconds)

    def record_predict(self, seconds: float) -> None:
        """Note the time that one prediction took."""
        self.predict.add(seconds)

    def record_watch(self, seconds: float) -> None:
        """Note the time that it took to tell the predictor of a layer, and to hear what to keep."""
        self.watch.add(seconds)

    def record_need(self, experts: int) -> None:
        """Note how many experts a layer would have had to load if nothing had been guessed."""
        self.need.add(float(experts))

    def record_demand(self, missed: bool) -> None:
        """Note whether a layer had to load anything on demand."""
        self.misses.add(float(missed))

    def record_outcomes(self, outcomes: Sequence[tuple[float, bool]]) -> None:
        """Note, for candidates that were not resident, the probability they were given and whether they were used."""
        for p, used in outcomes:
            self._expected.add(p)
            self._came_true.add(float(used))
        self._outcomes += len(outcomes)

    @property
    def trust(self) -> float:
        """What a candidate's probability is multiplied with: how often candidates came true for what was expected."""
        if self._outcomes < ENOUGH or not self._expected.value or self._came_true.value is None:
            return 1.0
        return self._came_true.value / self._expected.value

    def worth_predicting(self) -> bool:
        """Whether to ask the predictor at all for the coming layer."""
        if not self.enabled or self.saved.value is None or self.predict.value is None:
            return True
        if self.saved.value > self.predict.value:
            return True
        self._skipped += 1
        if self._skipped >= PROBE_EVERY:
            self._skipped = 0
            return True
        return False

    def worth_watching(self) -> bool:
        """Whether to tell the predictor of the coming pass at all."""
        watch, predict, need, load = self.watch.value, self.predict.value, self.need.value, self.load.value
        saved = self.saved.value
        if not self.enabled or watch is None or need is None or load is None or saved is None:
            return True
        predict = predict or 0.0
        guesses = max(0.0, saved - predict)
        if need * load > watch + predict and guesses + EVICTION_SAVES * need * load > watch:
            return True
        self._rested += 1
        if self._rested >= PROBE_EVERY:
            self._rested = 0
            return True
        return False

    def choose(self, candidates: Sequence[tuple[int, float]], layer: int = -1) -> list[tuple[int, float]]:
        """Return the candidates that are worth loading, in order.

        Args:
            candidates: (expert, probability of use) of experts that are not resident, likeliest first.
            layer: the layer whose experts they are.
        """
        window, load = self._window.get(layer, self.compute).value, self.load.value
        if not self.enabled or window is None or load is None:
            return list(candidates)
        chosen: list[tuple[int, float]] = []
        saved = 0.0
        misses = 1.0 if self.misses.value is None else self.misses.value
        trust = self.trust
        for expert, claimed in candidates:
            p = min(1.0, claimed * trust)
            begin = len(chosen) * load
            gain = p * min(load, max(0.0, window - begin))
            loss = (1.0 - p) * misses * min(load, max(0.0, begin + load - window))
            if gain <= loss + self.slowed:
                break
            chosen.append((expert, p))
            saved += gain - loss - self.slowed
        self.saved.add(saved)
        return chosen
