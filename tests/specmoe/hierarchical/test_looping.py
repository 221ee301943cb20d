"""Training that goes on in rounds."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from specmoe.hierarchical import Workspace, looping
from specmoe.hierarchical.looping import train_on
from specmoe.training import CheckpointError, TrainingInterrupted
from specmoe.training.tuning import labelled_loss
from specmoe.training.tuning import trainer as trainer_module


@pytest.fixture
def workspace(tiny, trained_root, tmp_path):
    """A copy of the trained experts that a test may change."""
    return Workspace(shutil.copytree(trained_root, tmp_path / "copy"))


def loss_of(workspace, domain):
    rows = workspace.encoded(workspace.records(domain)["validation"])
    return labelled_loss(workspace.expert(domain), rows, workspace.tokenizer.pad_token_id)


def test_a_round_keeps_what_is_better(workspace):
    before = loss_of(workspace, "knowledge")
    state = train_on(workspace, "knowledge", rounds=2, steps=20, progress=False)
    assert state.rounds == len(state.losses) == 2
    assert state.best < before
    # A round is evaluated in the precision that it is trained in, bfloat16; here it is float32.
    assert loss_of(workspace, "knowledge") == pytest.approx(state.best, rel=2e-3)
    left = workspace.folder("knowledge") / "loop"
    assert not list(left.glob("round-*/checkpoints")) and not list(left.glob("round-*/model"))
    # Another call goes on with the third round.
    assert train_on(workspace, "knowledge", rounds=1, steps=20, progress=False).rounds == 3


def test_a_plateau_ends_it_and_what_is_worse_is_dropped(workspace, monkeypatch):
    monkeypatch.setattr(trainer_module, "labelled_loss", lambda *args: 99.0)
    before = workspace.expert("math").state_dict()
    lines = []
    state = train_on(workspace, "math", steps=2, patience=2, tell=lines.append, progress=False)
    assert (state.rounds, state.flat, state.losses) == (2, 2, [99.0, 99.0])
    after = workspace.expert("math").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "round 2: validation loss 99.0000" in lines[-1]
    # Asked again, it tries again.
    assert train_on(workspace, "math", rounds=1, steps=2, patience=2, progress=False).rounds == 3


@pytest.mark.slow
def test_an_interrupted_round_goes_on(workspace, monkeypatch, tmp_path):
    other = Workspace(shutil.copytree(workspace.root, tmp_path / "other"))
    whole = train_on(other, "code", rounds=1, steps=8, progress=False)
    real = trainer_module.TuneTrainer.training_step

    def training_step(self, *args, **kwargs):
        self.run.stop.requested |= self.state.global_step == 3
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(trainer_module.TuneTrainer, "training_step", training_step)
        train_on(workspace, "code", rounds=1, steps=8, progress=False)
    assert train_on(workspace, "code", rounds=1, steps=8, progress=False) == whole


def test_rounds_draw_other_problems_but_never_the_held_out_ones(workspace, monkeypatch):
    plan = workspace.plan
    generated = type(plan)(**{**plan.__dict__, "sources": {}, "limit": 300})
    held = looping.domain_records(generated, "reasoning")
    first, second = (looping.domain_records(generated, "reasoning", draw)["train"] for draw in (0, 3))
    assert {record.key for record in first} != {record.key for record in second}
    unseen = {record.key for side in ("validation", "test") for record in held[side]}
    assert not unseen & {record.key for record in first + second}


def test_damaged_states_and_missing_experts_are_told(workspace):
    state = workspace.folder("math") / "loop" / "state.json"
    state.parent.mkdir(exist_ok=True)
    state.write_text(json.dumps({"rounds": 1}))
    with pytest.raises(CheckpointError, match=r"state\.json: expected a loop's state, got a damaged file"):
        train_on(workspace, "math", rounds=1, progress=False)
    shutil.rmtree(workspace.folder("code") / "model")
    with pytest.raises(CheckpointError, match="expected the code expert"):
        train_on(workspace, "code", rounds=1, progress=False)
