"""The arms of a comparison, and what each measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..stats import TransferStats


@dataclass(frozen=True)
class Arm:
    """One way to have experts at hand.

    Args:
        name: as tables and plots show it.
        guess: None loads on demand only; "predicted" asks the predictor, "oracle" the recorded routes.
        gated: whether guesses are priced.
        keep: whether experts are cached between uses.
        resident: everything is in memory; nothing is loaded.
        once: one round tells enough: it takes longest, and varies least.
        policy: order of eviction, by name; "pinned" holds the most frequent experts and evicts the others by last use.
        mapped: experts are read through a memory map.
    """

    name: str
    guess: str | None = None
    gated: bool = True
    keep: bool = True
    resident: bool = False
    once: bool = False
    policy: str = "lru"
    mapped: bool = False


RESIDENT = Arm("all resident", resident=True)
NO_CACHE = Arm("no cache", keep=False, once=True)
LRU_ARM = Arm("LRU")
ORACLE = Arm("oracle", guess="oracle", gated=False)
PINNED = Arm("LRU + most frequent pinned", policy="pinned")
PREVIOUS = Arm("LRU + previous token", guess="previous_token")
NEXT_GATE = Arm("LRU + next gate", guess="next_gate")
OURS = Arm("ours", guess="predicted", policy="guided")
OURS_UNGATED = Arm("ours, ungated", guess="predicted", gated=False, policy="guided")
MAPPED = Arm("LRU, memory map", mapped=True)
# What `specmoe offload bench` compares; a replay knows no hidden states, and so no next gate.
REPLAY_ARMS = (RESIDENT, NO_CACHE, LRU_ARM, PINNED, PREVIOUS, OURS, OURS_UNGATED, ORACLE, MAPPED)
MODEL_ARMS = (RESIDENT, NO_CACHE, LRU_ARM, PREVIOUS, NEXT_GATE, OURS, OURS_UNGATED, ORACLE, MAPPED)
# What the demo compares.
ARMS = (RESIDENT, NO_CACHE, LRU_ARM, OURS, OURS_UNGATED, ORACLE)


@dataclass
class ArmResult:
    """What one arm did over all rounds.

    Args:
        arm: which.
        tokens: tokens of each round.
        seconds: wall-clock time of each round, the predictor's included.
        stats: counts of each round.
        equal: whether every output had the bits of the reference arm's.
        cached_bytes: bytes that the page cache served instead of the disk, over all rounds; None where unknown.
        latencies: seconds of each token, where they were measured.
    """

    arm: Arm
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stats: list[TransferStats] = field(default_factory=list)
    equal: bool = True
    cached_bytes: int | None = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Median over the rounds."""
        return statistics.median(n / s for n, s in zip(self.tokens, self.seconds, strict=True))

    @property
    def total(self) -> TransferStats:
        """Counts added up over the rounds; the peak is the largest."""
        total = TransferStats()
        for part in self.stats:
            for name, value in vars(part).items():
                grown = max(total.peak_bytes, value) if name == "peak_bytes" else getattr(total, name) + value
                setattr(total, name, grown)
        return total

    def per_token(self, amount: float) -> float:
        """Return an amount over all rounds for each token."""
        return amount / sum(self.tokens)

    def add(self, tokens: int, seconds: float, stats: TransferStats, equal: bool, cached: int | None) -> None:
        """Note one round."""
        self.tokens.append(tokens)
        self.seconds.append(seconds)
        self.stats.append(stats)
        self.equal = self.equal and equal
        self.cached_bytes = None if cached is None or self.cached_bytes is None else self.cached_bytes + cached


def interleaved(arms: Sequence[Arm], rounds: int) -> Iterator[tuple[int, Arm]]:
    """Yield (round, arm), each round beginning with another arm; arms that run once are in the first alone."""
    for number in range(rounds):
        shift = number % len(arms)
        for arm in [*arms[shift:], *arms[:shift]]:
            if number == 0 or not arm.once:
                yield number, arm


def count_runs(arms: Sequence[Arm], rounds: int) -> int:
    """Return how many runs `interleaved` yields."""
    return sum(1 if arm.once else rounds for arm in arms)


class CacheMeter:
    """Finds out how many of the bytes that a run loaded came from the page cache instead of the disk.

    Direct reads go past it. For others it is the bytes loaded less those that the system says were read from storage
    for this process since the meter was made.

    Args:
        mode: how the store is read, as `DirectFile.mode` says it.
    """

    def __init__(self, mode: str) -> None:
        self._direct = mode == "direct"
        self._before = storage_bytes()

    def served(self, loaded: int) -> int | None:
        """Return the bytes of `loaded` that never came from storage; None where that cannot be known."""
        if self._direct:
            return 0
        after = storage_bytes()
        return None if self._before is None or after is None else max(0, loaded - (after - self._before))


def storage_bytes() -> int | None:
    """Return the bytes that this process has caused to be read from storage; None where the system does not tell."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("read_bytes:"))
