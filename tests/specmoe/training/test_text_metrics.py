"""Figures of generated text, by hand."""

from __future__ import annotations

import pytest

from specmoe.training.text_metrics import distinct, equal_lengths, repeat_rate, text_metrics, words_of


def test_words_are_words_numbers_and_signs():
    assert words_of("x_1 = 23, it's\n  done.") == ["x_1", "=", "23", ",", "it", "'", "s", "done", "."]


def test_a_loop_repeats_and_a_list_of_different_words_does_not():
    loop = words_of("a b c d " * 5)
    assert repeat_rate([loop]) == pytest.approx(1 - 4 / 17)
    assert repeat_rate([words_of("a b c d e f g")]) == 0.0
    # Each text by itself: the same text twice is no repetition.
    assert repeat_rate([words_of("a b c d e")] * 2) == 0.0
    assert repeat_rate([["a"]]) == 0.0


def test_distinct_counts_over_all_texts():
    assert distinct([["a", "b"], ["a", "b"]], 1) == 0.5
    assert distinct([["a", "b"], ["b", "a"]], 2) == 1.0
    assert distinct([], 1) == 0.0


def test_pairs_are_cut_to_the_shorter():
    assert equal_lengths([["a"] * 3, ["b"]], [["c"], ["d"] * 2]) == ([["a"], ["b"]], [["c"], ["d"]])


def test_all_together():
    found = text_metrics([["a", "b"], ["a"]])
    assert (found.words, found.distinct_1, found.distinct_2, found.repeat_4) == (1.5, 2 / 3, 1.0, 0.0)
    assert text_metrics([]).words == 0.0
