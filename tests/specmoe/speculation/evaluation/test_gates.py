from __future__ import annotations

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from specmoe.cli.app import app
from specmoe.speculation import AdaptivePredictor, record_trace, save_routes
from specmoe.speculation.evaluation import replay
from specmoe.speculation.evaluation.gates import gated_predictors, gates_of
from specmoe.transformer import SpecMoeConfig, SpecMoeForCausalLM


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SpecMoeConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        num_experts=8, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    return SpecMoeForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trace(model):
    torch.manual_seed(1)
    return record_trace(model, [torch.randint(0, 64, (40,)) for _ in range(6)], hidden=True)


def test_a_gate_on_its_own_residual_chooses_what_was_chosen(model, trace):
    for layer, scores in gates_of(model, trace).items():
        with torch.no_grad():
            said = scores(torch.from_numpy(trace.residuals[:, layer]).float()).topk(2).indices.sort(1).values
        wanted = torch.from_numpy(trace.experts[:, layer].astype("int64")).sort(1).values
        # Residuals are kept in half precision.
        assert (said == wanted).float().mean() > 0.98


def test_blends_say_probabilities(model, trace):
    kept, test = trace.split(0.4, 0)
    made = gated_predictors(model, kept, [("adaptive", lambda: AdaptivePredictor(3, 8, 2))], rank=4)
    assert list(made) == ["next gate", "next gate, corrected", "adaptive + next gate"]
    for make in made.values():
        chances = replay(make(), test).chances
        assert chances.shape == (len(test.experts), 3, 8) and (0 <= chances).all() and (chances <= 1).all()
        assert chances[1:, 1:].any()


def test_refuses(model, trace):
    with pytest.raises(ValueError, match="residual streams"):
        gates_of(model, dataclasses.replace(trace, residuals=None))
    with pytest.raises(ValueError, match="another model"):
        gates_of(model, dataclasses.replace(trace, residuals=trace.residuals[:, :, :8]))


def test_command(model, trace, tmp_path):
    model.save_pretrained(tmp_path / "model")
    # The command asks for a tokenizer with every model.
    from specmoe.training.data import Record, train_tokenizer

    train_tokenizer([Record("a b", "c d", "math")] * 4, 300, 64).save_pretrained(tmp_path / "model")
    save_routes(trace, tmp_path / "t.npz")
    given = ["predict", "evaluate", str(tmp_path / "t.npz"), "--output", str(tmp_path / "out"), "--held-out", "0.4"]
    done = CliRunner().invoke(app, [*given, "--slots", "4", "--model", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    table = (tmp_path / "out" / "table.md").read_text()
    assert "next gate, corrected" in table and "adaptive + next gate" in table
    save_routes(dataclasses.replace(trace, residuals=None, shared=None), tmp_path / "plain.npz")
    given[2] = str(tmp_path / "plain.npz")
    refused = CliRunner().invoke(app, [*given, "--slots", "4", "--model", str(tmp_path / "model")])
    assert refused.exit_code != 0 and "--hidden" in refused.output
