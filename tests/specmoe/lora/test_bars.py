"""What the LoRA experts must reach with the defaults, offline: `specmoe lora train --all`, `train mixed`, `eval`.

`SPECMOE_LORA_RUNS` names the folder of such runs (with `XDG_CACHE_HOME` as it was then); without it they are trained
here, which takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from specmoe.cli.app import app
from specmoe.training.data import DOMAINS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluation(made_once):
    return json.loads((made_once("lora-bars", _evaluated) / "evaluation.json").read_text())


def _evaluated(folder):
    given = os.environ.get("SPECMOE_LORA_RUNS")
    runs = Path(given) if given else folder / "runs"
    commands = [["eval", "--adapters", runs, "--output", folder]]
    if not given:
        commands = [["train", "--all", "--output", runs], ["train", "mixed", "--output", runs], *commands]
    for command in commands:
        done = CliRunner().invoke(app, ["lora", *map(str, command)])
        assert done.exit_code == 0, done.output


def test_each_expert_is_the_best_on_its_own_domain(evaluation):
    losses = evaluation["losses"]
    for domain in DOMAINS:
        assert min(DOMAINS, key=lambda expert: losses[expert][domain]) == domain


@pytest.mark.parametrize("domain", DOMAINS)
def test_it_is_well_under_one_adapter_for_all(evaluation, domain):
    assert evaluation["losses"][domain][domain] <= evaluation["losses"]["mixed"][domain] - 0.05


def test_the_router_costs_at_most_2_percent(evaluation):
    assert evaluation["routed_excess"] <= 0.02


def test_answers_are_checked(evaluation):
    for domain in ("math", "reasoning"):
        assert evaluation["answers"][domain] >= 50
        assert set(evaluation["accuracy"][domain]) == {domain, "base", "mixed"}
