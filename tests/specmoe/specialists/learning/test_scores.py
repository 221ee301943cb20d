"""Whether a score has fallen, without looking at everything."""

from __future__ import annotations

import pytest

from specmoe.specialists.learning.scores import HeldOut

ROWS = [{"place": place} for place in range(200)]


class Model:
    """Is right in all rows but some, and counts what it is asked."""

    def __init__(self, wrong):
        self.wrong, self.asked = set(wrong), 0

    def which(self, rows):
        self.asked += len(rows)
        return [row["place"] not in self.wrong for row in rows]


@pytest.mark.parametrize(
    ("after", "kept"),
    [({3, 7}, True), ({3}, True), (set(), True), ({3, 9}, True), ({9, 150}, True), ({3, 7, 199}, False),
     ({9, 10, 11}, False), (set(range(200)), False)],
)  # fmt: skip
def test_says_whether_as_many_are_right_as_before(after, kept):
    model = Model({3, 7})
    held_out = HeldOut(model.which, ROWS, model.which(ROWS))
    assert held_out.before == 198
    model.wrong = after
    count, held = held_out.right()
    assert held is kept
    assert count == 200 - len(after) if held else 200 - len(after) <= count < 198


def test_what_was_lost_is_looked_at_first():
    model = Model({3})
    held_out = HeldOut(model.which, ROWS, model.which(ROWS))
    model.wrong = {3, 160}
    model.asked = 0
    assert not held_out.right()[1]
    first, model.asked = model.asked, 0
    assert not held_out.right()[1]
    assert first == 200 and model.asked == 17
    # The order does not change the count.
    model.wrong = {3}
    assert held_out.right() == (199, True)


def test_everything_wrong_before():
    model = Model(range(200))
    held_out = HeldOut(model.which, ROWS, model.which(ROWS))
    assert held_out.right() == (0, True)
    model.wrong -= {5}
    assert held_out.right() == (1, True)
