"""A rank that is gone is an error on the others, not a hang."""

from __future__ import annotations

import pytest

# The check has seen the exceptions that it waits for: an empty string in JSON.
FINE = '""'


def test_a_rank_that_exits_is_an_error_on_the_others(ranks):
    if not ranks.processes:
        ranks.start()
    ranks.ask(range(3), "dies", 3, how="exit", seconds=ranks.timeout)
    answers = ranks.answers(range(2), 3 * ranks.timeout)
    # The rank that is gone breaks the pool; a test after this one starts another. None does: files go by name.
    ranks.stop()
    assert answers == [FINE, FINE]


@pytest.mark.slow
def test_a_rank_that_freezes_is_an_error_within_the_timeout(other_ranks):
    timeout = 10.0
    pool = other_ranks(2, timeout)
    # Two calls, and each may wait for the timeout once.
    pool.ask(range(2), "dies", 2, how="freeze", seconds=2 * timeout + 5)
    assert pool.answers(range(1), 10 * timeout) == [FINE]
