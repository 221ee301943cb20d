"""Figures of the experts: losses, the routed system, answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from specmoe.hierarchical import Answer, evaluate
from specmoe.hierarchical.embedding import embed_records, hidden_features, train_classifier
from specmoe.hierarchical.evaluation import judged
from specmoe.hierarchical.losses import mean_loss, mixed_loss, token_log_probs
from specmoe.training.data import DOMAINS, Record
from specmoe.training.heat_map import plot_heat_map
from specmoe.training.tuning import labelled_loss


def test_log_probabilities_are_the_loss_token_by_token(trained):
    rows = trained.encoded(trained.records("math")["test"])
    expert, pad_id = trained.expert("math"), trained.tokenizer.pad_token_id
    few, many = token_log_probs(expert, rows, pad_id, 200), token_log_probs(expert, rows, pad_id)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(few, many, strict=True))
    assert [len(of) for of in few] == [sum(label != -100 for label in labels) for labels in rows["labels"]]
    assert mean_loss(few) == pytest.approx(labelled_loss(expert, rows, pad_id), rel=1e-5)


def test_a_mixture_costs_at_most_the_weight_of_its_right_expert():
    right, wrong = [np.log([0.9, 0.8]), np.log([0.7])], [np.log([0.1, 1e-9]), np.log([1e-9])]
    table = {"right": right, "wrong": wrong}
    sure, unsure = np.array([[1.0, 0.0]] * 2), np.array([[0.6, 0.4]] * 2)
    assert mixed_loss(table, sure) == pytest.approx(mean_loss(right))
    by_hand = -(np.log(0.6 * 0.72 + 0.4 * 1e-10) + np.log(0.6 * 0.7 + 0.4 * 1e-9)) / 3
    assert mixed_loss(table, unsure) == pytest.approx(by_hand)
    assert mixed_loss(table, unsure) <= mean_loss(right) - 2 * np.log(0.6) / 3 + 1e-12
    at_each = -np.log([0.6 * 0.9 + 0.04, 0.6 * 0.8 + 4e-10, 0.6 * 0.7 + 4e-10]).mean()
    assert mixed_loss(table, unsure, update=False) == pytest.approx(at_each)


def test_answers_are_judged_at_equal_lengths():
    records = [Record("a", "one two three four\nAnswer: 5", "math", "5"), Record("b", "x", "math", "6")]
    loop = "go on and on " * 9
    answers = [Answer([], "Answer: 5.0", True), Answer([], loop, False)]
    found = judged(records, answers)
    assert (found.stop_rate, found.accuracy) == (0.5, 0.5)
    # The loop is cut to the one word of its record.
    assert found.texts.repeat_4 == found.data.repeat_4 == found.excess_repeats == 0.0
    free = judged([Record("b", loop + "x", "code")], [Answer([], loop, False)])
    assert free.accuracy is None and free.excess_repeats == pytest.approx(0.0)


def test_a_report_has_every_figure(trained, tmp_path):
    report = evaluate(trained, prompts=4)
    assert list(report.losses) == list(DOMAINS)
    for domain in DOMAINS:
        assert report.routed[domain] <= report.right_expert[domain] * 1.5 + 0.2
    assert report.generated.keys() == {"default", "greedy"}
    told = json.loads(json.dumps(report.as_json()))
    assert told["perplexity"]["math"] == pytest.approx(np.exp(report.losses["math"]["math"]))
    assert told["generated"]["greedy"]["code"]["stop_rate"] <= 1
    assert not evaluate(trained, prompts=0).generated
    plot_heat_map(report.losses, tmp_path / "map.png", "losses", "expert", "domain")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_features_do_not_depend_on_the_batch(trained):
    expert, tokenizer = trained.expert("code"), trained.tokenizer
    texts = ["Write a function.", "Hi", "What is 3 + 4? " * 60]
    together = hidden_features(expert, tokenizer, texts)
    assert together.shape == (3, expert.config.n_embd)
    for row, text in zip(together, texts, strict=True):
        assert np.allclose(hidden_features(expert, tokenizer, [text])[0], row, atol=1e-5)


def test_a_classifier_learns_what_can_be_told_apart():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    labels = ["up" if row[2] > 0.3 else "down" for row in x]
    classifier = train_classifier(x, labels, decay=1e-5)
    assert np.mean([said == label for said, label in zip(classifier(x), labels, strict=True)]) > 0.97


def test_embedded_records_are_written_with_their_classifier(trained, tmp_path):
    embedded = embed_records(trained, "knowledge", each=60)
    assert embedded.accuracy > 0.8
    embedded.save(tmp_path / "f.npz", ["a text"], embedded.features[:1])
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["features"].shape == (len(embedded.labels), 16)
        logits = (stored["features"] - stored["mean"]) / stored["deviation"] @ stored["weight"] + stored["bias"]
        said = stored["classes"][logits.argmax(axis=1)]
        assert (said == stored["labels"]).mean() == pytest.approx(embedded.accuracy)
        assert stored["texts"].tolist() == ["a text"]
