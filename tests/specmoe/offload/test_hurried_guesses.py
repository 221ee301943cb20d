"""Guesses that a layer comes to wait for: their reads are hurried."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from specmoe.offload import ExpertKey, ExpertStore, HostTier
from specmoe.offload.store import aligned_buffer

from .test_host_tier import key


def test_a_late_guess_no_longer_stands_behind_other_guesses(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = store.file.reader
    if reader is None:
        pytest.skip("no native reader")
    promoted: list[tuple[ExpertKey, bool]] = []

    class Slow:
        """Lets a guess's parts be waited for only when its demand is there."""

        def submit(self, offset: int, part: Any, urgent: bool) -> int:
            return int(reader.submit(offset, part, urgent=urgent))

        def wait(self, number: int) -> Any:
            assert asked.wait(10)
            return reader.wait(number)

        def promote(self, number: int) -> bool:
            promoted.append((key(1), number in store.file._background[store.layout.blobs[key(1)].offset]))
            return bool(reader.promote(number))

        def cancel(self, number: int) -> bool:
            return bool(reader.cancel(number))

    asked = threading.Event()
    monkeypatch.setattr(store.file, "reader", Slow())
    with HostTier(store, 4, lanes=2) as tier:
        tier.speculate([(key(1), 0.5)])
        while not store.file._background:
            time.sleep(0.001)
        assert tier.demand([key(1)]) == 0
        asked.set()
        tier.wait([key(1)])
        assert promoted == [(key(1), True)] and not store.file._background
        # One that is demanded from the beginning, or there by now, is nobody's guess.
        tier.demand([key(1), key(2)])
        tier.wait([key(2)])
        assert len(promoted) == 1
        tier.release([key(1), key(1), key(2)])
        assert tier.stats.late == 1 and not store.file._hurried
    monkeypatch.undo()


def test_a_guess_that_is_hurried_before_it_begins_or_between_attempts(store: ExpertStore) -> None:
    reader, urgent = store.file.reader, []
    if reader is None:
        pytest.skip("no native reader")

    class Failing:
        """Notes how parts are submitted; the first attempt fails, and is hurried then."""

        def submit(self, offset: int, part: Any, **how: bool) -> int:
            urgent.append(how["urgent"])
            return int(reader.submit(offset, part, **how))

        def wait(self, number: int) -> Any:
            outcome = reader.wait(number)
            if len(urgent) > 1:
                return outcome
            store.hurry(key(3))
            return 5, "made up"

        promote, cancel = reader.promote, reader.cancel

    store.file.reader = Failing()
    try:
        store.file.in_background(True)
        target = memoryview(aligned_buffer(store.layout.blob_bytes))
        assert store.read_into(key(3), target) == 1 and urgent == [False, True]
        store.hurry(key(2))
        store.read_into(key(2), target)
        store.read_into(key(1), target)
        assert urgent == [False, True, True, False] and not store.file._hurried
    finally:
        store.file.in_background(False)
        store.file.reader = reader
