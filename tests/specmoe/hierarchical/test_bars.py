"""What the preset is there for, on records that no expert has seen.

The experts are trained first, which takes a quarter of an hour, or read from the folder that `MOE_HIERARCHICAL_DIR`
names.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from specmoe.hierarchical import Workspace, claim_plan, evaluate, train_experts
from specmoe.hierarchical.embedding import embed_records
from specmoe.training.data import DOMAINS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(made_once):
    given = os.environ.get("MOE_HIERARCHICAL_DIR")
    return Workspace(Path(given) if given else made_once("hierarchical-bars", _trained) / "experts")


def _trained(folder):
    root = folder / "experts"
    made, begin = Workspace(root, claim_plan(root)), time.process_time()
    train_experts(made, DOMAINS, print, progress=False)
    assert made.router.domains
    # Two threads for 20 minutes.
    assert time.process_time() - begin <= 2 * 20 * 60


@pytest.fixture(scope="module")
def report(workspace):
    return evaluate(workspace, prompts=100)


@pytest.mark.parametrize("domain", DOMAINS)
def test_answers_do_not_loop(report, domain):
    assert report.generated["default"][domain].excess_repeats <= 0.05
    assert report.generated["greedy"][domain].excess_repeats <= 0.15


@pytest.mark.parametrize("domain", DOMAINS)
def test_answers_end(report, domain):
    assert report.generated["default"][domain].stop_rate >= 0.95


def test_each_expert_is_the_best_in_its_domain(report):
    for domain in DOMAINS:
        assert min(report.losses, key=lambda expert: report.losses[expert][domain]) == domain


def test_routing_costs_little(report):
    assert report.routing_cost <= 0.02


def test_answers_that_can_be_checked_are(report):
    for domain in ("math", "reasoning"):
        assert report.generated["greedy"][domain].accuracy is not None


def test_features_tell_the_domains_apart(workspace):
    assert embed_records(workspace, "knowledge", each=200).accuracy >= 0.9
