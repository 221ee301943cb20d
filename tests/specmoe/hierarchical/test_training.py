"""Training of experts: interrupted, continued, left alone when finished; and what is refused."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from specmoe.hierarchical import Workspace, claim_plan, read_plan, train_expert, train_experts
from specmoe.hierarchical.training import tune_settings
from specmoe.training import CheckpointError, DataError, TrainingInterrupted
from specmoe.training.checkpoints import checkpoint_steps, publish
from specmoe.training.data import DOMAINS, encode_prompt, end_of_turn
from specmoe.training.tuning import trainer as trainer_module


def weights(workspace, domain):
    # Copies: what is loaded is a view of the file, which may change.
    return {name: weight.clone() for name, weight in workspace.expert(domain).state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def press_ctrl_c_before(patch, step):
    """Asks the run to stop at the end of the step before `step`."""
    real = trainer_module.TuneTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step + 2 == step:
            self.run.stop.requested = True
        return real(self, *args, **kwargs)

    patch.setattr(trainer_module.TuneTrainer, "training_step", training_step)


def test_a_model_that_was_about_to_be_replaced(new_workspace):
    opened = new_workspace()
    model = publish(opened.folder("math"), "model", lambda folder: (folder / "weights").write_text("x"))
    model.rename(model.with_name(".replaced-model"))
    assert opened.finished("math") and model.is_dir()


def test_all_goes_on_where_it_was_and_leaves_what_is_finished(new_workspace, monkeypatch):
    whole = new_workspace("whole")
    train_experts(whole, ("math", "code"), lambda line: None, progress=False)

    lines = []
    parts = new_workspace("parts")
    train_expert(parts, "math", progress=False)
    before = {path: path.stat().st_mtime_ns for path in parts.folder("math").rglob("*")}
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        press_ctrl_c_before(patch, 4)
        train_experts(parts, ("math", "code"), lines.append, progress=False)
    assert any("math: trained before" in line for line in lines)
    assert checkpoint_steps(parts.folder("code") / "plain" / "checkpoints") and not parts.finished("code")
    results = train_experts(Workspace(parts.root), ("math", "code"), lines.append, progress=False)
    assert [result.result is None for result in results] == [True, False]
    assert before == {path: path.stat().st_mtime_ns for path in parts.folder("math").rglob("*")}
    for domain in ("math", "code"):
        assert equal(weights(whole, domain), weights(parts, domain))


@pytest.mark.slow
def test_what_is_averse_to_loops_goes_on_in_its_second_part(new_workspace, monkeypatch):
    whole, parts = new_workspace("whole", steps=16), new_workspace("parts", steps=16)
    result = train_expert(whole, "knowledge", progress=False).result
    assert result is not None and result.steps == result.best_step == 8
    assert not equal(weights(whole, "knowledge"), whole.expert("knowledge", "plain").state_dict())
    real = trainer_module.TuneTrainer.training_step

    def training_step(self, *args, **kwargs):
        self.run.stop.requested |= self.run.settings.steps == 8 and self.state.global_step == 1
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(trainer_module.TuneTrainer, "training_step", training_step)
        train_expert(parts, "knowledge", progress=False)
    assert parts.finished("knowledge", "plain") and not parts.finished("knowledge")
    train_expert(parts, "knowledge", progress=False)
    assert equal(weights(whole, "knowledge"), weights(parts, "knowledge"))


def test_experts_differ_and_share_one_tokenizer(new_workspace):
    workspace = new_workspace()
    assert not equal(workspace.untrained("math").state_dict(), workspace.untrained("code").state_dict())
    assert equal(workspace.untrained("math").state_dict(), workspace.untrained("math").state_dict())
    assert new_workspace().tokenizer.get_vocab() == workspace.tokenizer.get_vocab()


def test_a_damaged_model_is_made_again_from_the_last_checkpoint(new_workspace):
    workspace = new_workspace()
    train_expert(workspace, "math", progress=False)
    good, path = weights(workspace, "math"), workspace.folder("math") / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected bytes"):
        workspace.expert("math")
    train_expert(workspace, "math", progress=False)
    assert equal(good, weights(workspace, "math"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(new_workspace, monkeypatch):
    workspace = new_workspace()
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        press_ctrl_c_before(patch, 5)
        train_expert(workspace, "math", progress=False)
    newest = workspace.folder("math") / "checkpoints" / "checkpoint-4"
    (newest / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"remove {newest} to resume from an earlier checkpoint"):
        train_expert(workspace, "math", progress=False)


def test_a_full_disk_keeps_the_last_checkpoint_and_the_other_experts(new_workspace, monkeypatch):
    workspace = new_workspace()
    train_expert(workspace, "math", progress=False)
    real = trainer_module.TuneTrainer._save_optimizer_and_scheduler

    def full(self, directory):
        if self.state.global_step >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, directory)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left on device"):
        patch.setattr(trainer_module.TuneTrainer, "_save_optimizer_and_scheduler", full)
        train_experts(workspace, ("math", "code"), lambda line: None, progress=False)
    assert checkpoint_steps(workspace.folder("code") / "plain" / "checkpoints")[-1] < 4
    assert workspace.finished("math")
    train_experts(workspace, ("math", "code"), lambda line: None, progress=False)
    assert workspace.finished("code")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected records, got an empty file"),
        ("{not json\n", "not loaded"),
        ('{"prompt": "a", "completion": ""}\n', "expected records from .*, found none"),
        ('{"prompt": "a", "completion": "b"}\n', "expected enough records for a .* split"),
        (
            "".join(json.dumps({"prompt": f"{i} " * 200, "completion": "x"}) + "\n" for i in range(99)),
            "expected a record of at most 128 tokens, got none",
        ),
    ],
    ids=["empty", "unreadable", "blank", "too-few", "too-long"],
)
def test_bad_records_are_told_and_finished_experts_stay(new_workspace, sources, tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    workspace = new_workspace(sources={**sources, "code": str(path)})
    if "128 tokens" in message:
        train_expert(workspace, "math", progress=False)
    with pytest.raises(DataError, match=message):
        train_expert(workspace, "code", progress=False)
    assert not workspace.finished("code")


def test_a_folder_keeps_its_plan(new_workspace, tmp_path):
    workspace = new_workspace(seed=3)
    root = workspace.root
    with pytest.raises(CheckpointError, match="expected experts, found none"):
        read_plan(root)
    assert len(workspace.tokenizer) > 256
    assert claim_plan(root) == read_plan(root) == workspace.plan
    assert claim_plan(root, seed=3).seed == 3
    with pytest.raises(ValueError, match=r"seed: expected 3 as the experts in .* have it, got 4"):
        claim_plan(root, seed=4)
    with pytest.raises(CheckpointError, match="expected experts, found none"):
        read_plan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="preset: expected one of small, medium"):
        claim_plan(tmp_path / "other", preset="large")
    assert not (tmp_path / "other").exists()
    (root / "experts.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged file"):
        Workspace(root)


def test_a_missing_expert_says_how_to_make_it(new_workspace):
    workspace = new_workspace()
    with pytest.raises(CheckpointError, match=r"expected the math expert, found none; `specmoe hierarchical train"):
        workspace.experts()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Returns the folder of a tiny GPT-2 with a byte-level tokenizer of its own."""
    folder = tmp_path_factory.mktemp("gpt2") / "gpt2"
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {sign: i for i, sign in enumerate([*bytes_to_unicode().values(), "<|endoftext|>"])}
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), n_positions=128, n_embd=16, n_layer=1, n_head=2))
    network.save_pretrained(folder)
    return folder


def test_experts_begin_as_a_trained_gpt2(gpt2, sources, tmp_path):
    root = tmp_path / "experts"
    plan = claim_plan(root, init=str(gpt2), sources=sources, steps=3, context=120)
    assert plan.preset == "init"
    workspace = Workspace(root, plan)
    begin, given = workspace.untrained("math"), GPT2LMHeadModel.from_pretrained(gpt2)
    assert torch.equal(begin.transformer.h[0].attn.c_attn.weight, given.transformer.h[0].attn.c_attn.weight)
    rows = given.transformer.wte.weight
    assert torch.equal(begin.transformer.wte.weight[: len(rows)], rows)
    assert len(begin.transformer.wte.weight) == len(workspace.tokenizer) == len(rows) + 4
    ids = encode_prompt(workspace.tokenizer, [{"role": "user", "content": "hi"}])
    assert workspace.tokenizer.convert_ids_to_tokens(ids) == ["<|user|>", "h", "i", "<|assistant|>"]
    assert workspace.tokenizer.decode([end_of_turn(workspace.tokenizer)]) == "<|end|>"
    train_expert(workspace, "math", progress=False)
    assert workspace.expert("math").config.eos_token_id == end_of_turn(workspace.tokenizer)


@pytest.mark.parametrize("missing", ["folder", "weights"])
def test_what_cannot_be_begun_from_is_told(gpt2, sources, tmp_path, missing, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "given"
    if missing == "weights":
        folder.mkdir()
        for path in gpt2.iterdir():
            if path.suffix != ".safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
    workspace = Workspace(tmp_path / "experts", claim_plan(tmp_path / "experts", init=str(folder), sources=sources))
    with pytest.raises(DataError, match=r"--init .*given"):
        train_expert(workspace, "math", progress=False)


def test_evaluations_and_checkpoints_are_spread_over_the_run(tmp_path):
    plan = claim_plan(tmp_path / "experts")
    for domain in DOMAINS:
        settings = tune_settings(plan, domain)
        assert settings.eval_every * 12 <= settings.steps
        assert settings.save_every * 2 <= settings.eval_every
