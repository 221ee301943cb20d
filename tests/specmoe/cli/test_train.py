"""`specmoe train` and `specmoe generate`."""

from __future__ import annotations

import pytest

from specmoe.training.checkpoints import checkpoint_steps
from specmoe.training.trainer import StepEvents


def one_line(outcome):
    """Returns the only line of an outcome's standard error."""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    return lines[0]


def test_train_then_generate(specmoe, tiny, tmp_path):
    outcome = specmoe("train", *tiny)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("validation loss ")
    assert f"model in {tmp_path / 'run' / 'model'}" in outcome.out
    assert "step 6: validation loss" in outcome.err
    model = tmp_path / "run" / "model"
    texts = [
        specmoe("generate", model, "--prompt", "the moon", "--max-new-tokens", 9, *options)
        for options in ([], ["--seed", 1], ["--seed", 1], ["--temperature", 0], ["--temperature", 0, "--seed", 5])
    ]
    assert all(text.code == 0 and text.out.startswith("the moon") and len(text.out) == 18 for text in texts)
    assert texts[1].out == texts[2].out
    assert texts[0].out != texts[1].out
    assert texts[3].out == texts[4].out
    # The context holds 16 characters; a longer text goes on from its second half.
    longer = specmoe("generate", model, "--prompt", "the moon", "--max-new-tokens", 60, "--temperature", 0)
    assert (longer.code, len(longer.out)) == (0, 8 + 60 + 1)
    assert longer.out.startswith(texts[3].out[:16])
    assert longer.err == ""

    outcome = specmoe("train", *tiny)
    assert outcome.code == 2
    assert "run holds an earlier run" in one_line(outcome)

    outcome = specmoe("generate", model, "--prompt", "the MOON")
    assert outcome.code == 2
    assert one_line(outcome) == "error: --prompt: expected characters of the model's vocabulary, got 'MNO'"

    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    outcome = specmoe("generate", model)
    assert outcome.code == 2
    assert "model.safetensors: expected bytes" in one_line(outcome)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(specmoe, tiny, tmp_path, monkeypatch):
    presses = []
    real = StepEvents.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.trainer.around.stop.requested = True
            presses.append(state.global_step)
        return real(self, args, state, control, **kwargs)

    monkeypatch.setattr(StepEvents, "on_step_end", on_step_end)
    outcome = specmoe("train", *tiny)
    monkeypatch.undo()
    run = tmp_path / "run"
    assert (outcome.code, presses) == (130, [2])
    last = outcome.err.splitlines()[-1]
    assert last.startswith("interrupted after step 2; state saved in")
    assert last.endswith(f"continue with: specmoe train --resume --output {run}")
    assert checkpoint_steps(run / "checkpoints") == [2]
    outcome = specmoe("train", "--resume", "--output", run)
    assert outcome.code == 0, outcome.err
    assert "resuming from" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "gpu"], "error: preset: name: expected one of cpu, full, got 'gpu'"),
        (["--experts", "2", "--top-k", "3"], "error: TrainSettings: top_k: expected at most num_experts=2, got 3"),
        (
            ["--device", "tpu"],
            "error: TrainSettings: device: expected one of auto, cuda, mps, directml, cpu, got 'tpu'",
        ),
        (["--activation", "tanh"], "error: SpecMoeConfig: hidden_act: expected one of silu, "),
        (["--heads", "5"], "error: SpecMoeConfig: hidden_size: expected a multiple of 2 * num_attention_heads=10"),
        (["--dataset", "missing.txt"], "error: dataset: no such file: missing.txt"),
        (["--resume"], "error: --resume: expected --output to name the run's directory, got none"),
        (["--resume", "--output", "nowhere"], "error: resume: nowhere/settings.json: expected a run's settings"),
        (["--resume", "--output", "nowhere", "--preset", "cpu"], "error: --resume: expected no --preset"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line_and_2(specmoe, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    outcome = specmoe("train", *options)
    assert outcome.code == 2
    assert one_line(outcome).startswith(message)


def test_an_unreadable_path_is_one_line_and_1(specmoe, tiny, tmp_path):
    folder = tmp_path / "folder.txt"
    folder.mkdir()
    (tmp_path / "run").write_text("a file where the run's directory should be")
    outcome = specmoe("train", *tiny, "--output", tmp_path / "run" / "below")
    assert outcome.code == 1
    assert "Not a directory" in one_line(outcome)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "expected a model directory, found none at"),
        (lambda folder: folder.mkdir(), "config.json: expected a configuration, found no such file"),
    ],
    ids=["missing", "empty"],
)
def test_generate_names_a_model_that_is_not_there(specmoe, tmp_path, prepare, message):
    prepare(tmp_path / "model")
    outcome = specmoe("generate", tmp_path / "model")
    assert outcome.code == 2
    assert message in one_line(outcome)
