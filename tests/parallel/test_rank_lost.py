"""A rank that is gone is an error on the others, not a hang."""

from __future__ import annotations

import time

import pytest

# The check has seen the exceptions that it waits for: an empty string in JSON.
FINE = '""'


def test_a_rank_that_exits_is_an_error_on_the_others(ranks):
    if not ranks.processes:
        ranks.start()
    begin = time.monotonic()
    ranks.ask(range(3), "dies", 3, how="exit")
    answers = ranks.answers(range(2), 3 * ranks.timeout)
    # The rank that is gone breaks the pool; a test after this one starts another. None does: files go by name.
    ranks.stop()
    assert answers == [FINE, FINE]
    assert time.monotonic() - begin < ranks.timeout


@pytest.mark.slow
def test_a_rank_that_freezes_is_an_error_within_the_timeout(other_ranks):
    timeout = 10.0
    pool = other_ranks(2, timeout)
    begin = time.monotonic()
    pool.ask(range(2), "dies", 2, how="freeze")
    assert pool.answers(range(1), 5 * timeout) == [FINE]
    # Two calls, and each may wait for the timeout once.
    assert time.monotonic() - begin < 2 * timeout + 5
