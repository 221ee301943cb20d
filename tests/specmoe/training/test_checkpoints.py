"""Checkpoints on disk: complete or absent, verified, pruned."""

from __future__ import annotations

import os

import pytest

from specmoe.training import CheckpointError
from specmoe.training import checkpoints as module
from specmoe.training.checkpoints import (
    checkpoint_steps,
    clean_leftovers,
    last_checkpoint,
    prune,
    publish,
    put_back,
    verify,
)


def fill(text):
    def write(directory):
        (directory / "weights.bin").write_text(text)
        (directory / "state.json").write_text("{}")

    return write


def test_a_published_directory_is_complete(tmp_path):
    path = publish(tmp_path / "runs", "checkpoint-5", fill("w" * 1000))
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "state.json", "weights.bin"]
    verify(path)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["checkpoint-5"]
    assert last_checkpoint(tmp_path / "runs") == path


def test_publishing_again_replaces(tmp_path):
    publish(tmp_path, "model", fill("old"))
    path = publish(tmp_path, "model", fill("new"))
    verify(path)
    assert (path / "weights.bin").read_text() == "new"


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", range(12), ids=lambda call: f"call{call}")
def test_dying_at_any_point_leaves_the_old_or_the_new_version(tmp_path, monkeypatch, call):
    """The process dies at the n-th call that reaches the disk; start-up then finds one whole version."""
    publish(tmp_path, "model", fill("old"))
    real = {name: getattr(os, name) for name in ("rename", "fsync")}
    calls = iter(range(100))

    def dying(name):
        def act(*args):
            if next(calls) == call:
                raise Died
            return real[name](*args)

        return act

    for name in real:
        monkeypatch.setattr(module.os, name, dying(name))
    died = False
    try:
        publish(tmp_path, "model", fill("new"))
    except Died:
        died = True
    monkeypatch.undo()
    clean_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    verify(tmp_path / "model")
    content = (tmp_path / "model" / "weights.bin").read_text()
    # Two files, the manifest, the directory; two renames; the parent.
    assert died == (call < 7)
    assert content == ("old" if call < 6 else "new")


@pytest.mark.parametrize(
    ("function", "dies_at", "left"),
    [
        ("os.rename", ".partial-model", "old"),
        ("_flush", "runs", "new"),
        ("shutil.rmtree", ".replaced-model", "new"),
    ],
    ids=["between the renames", "in the last flush", "while it removes"],
)
def test_publishing_goes_on_after_a_kill(tmp_path, monkeypatch, function, dies_at, left):
    runs = tmp_path / "runs"
    publish(runs, "model", fill("old"))
    owner, _, name = function.rpartition(".")
    place = getattr(module, owner) if owner else module
    real = getattr(place, name)

    def dying(path, *args, **options):
        if path.name == dies_at:
            raise Died
        return real(path, *args, **options)

    monkeypatch.setattr(place, name, dying)
    with pytest.raises(Died):
        publish(runs, "model", fill("new"))
    monkeypatch.undo()
    put_back(runs, "model")
    verify(runs / "model")
    assert (runs / "model" / "weights.bin").read_text() == left
    publish(runs, "model", fill("newer"))
    assert [path.name for path in runs.iterdir()] == ["model"]
    assert (runs / "model" / "weights.bin").read_text() == "newer"


def test_a_file_is_flushed_before_the_directory_gets_its_name(tmp_path, monkeypatch):
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source, target):
        events.append("rename")
        real_rename(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to name a descriptor's file")
    monkeypatch.setattr(module.os, "fsync", fsync)
    monkeypatch.setattr(module.os, "rename", rename)
    publish(tmp_path / "runs", "checkpoint-1", fill("x"))
    partial = ".partial-checkpoint-1"
    assert events == ["state.json", "weights.bin", "manifest.json", partial, "rename", "runs"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "weights.bin").unlink(), "weights.bin: expected 1000 bytes, found no such file"),
        (lambda path: (path / "weights.bin").write_text("w"), "weights.bin: expected bytes 1000, got 1"),
        (
            lambda path: (path / "weights.bin").write_text("v" * 1000),
            r"weights.bin: expected sha256 \w{64}, got \w{64}",
        ),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json: expected a manifest, found no such file"),
        (
            lambda path: (path / "manifest.json").write_text("{"),
            "manifest.json: expected a JSON manifest, got a damaged",
        ),
    ],
    ids=["missing", "truncated", "flipped", "no-manifest", "bad-manifest"],
)
def test_a_damaged_checkpoint_is_refused_by_file(tmp_path, damage, message):
    publish(tmp_path, "checkpoint-3", fill("w" * 1000))
    newest = publish(tmp_path, "checkpoint-12", fill("w" * 1000))
    damage(newest)
    with pytest.raises(CheckpointError, match=f"checkpoint-12/{message}.*; remove .*checkpoint-12 to resume"):
        last_checkpoint(tmp_path)


@pytest.mark.parametrize("made", [True, False], ids=["empty", "absent"])
def test_a_missing_checkpoint_is_refused_by_directory(tmp_path, made):
    directory = tmp_path / "checkpoints"
    if made:
        directory.mkdir()
    with pytest.raises(CheckpointError, match="resume: expected a checkpoint in .*checkpoints, found none"):
        last_checkpoint(directory)


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8, 10):
        publish(tmp_path, f"checkpoint-{step}", fill(str(step)))
    prune(tmp_path, keep=2, best_step=4)
    assert checkpoint_steps(tmp_path) == [4, 8, 10]
    prune(tmp_path, keep=2, best_step=10)
    assert checkpoint_steps(tmp_path) == [8, 10]


def test_other_files_are_no_checkpoints(tmp_path):
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / ".partial-checkpoint-7").mkdir()
    (tmp_path / ".partial-settings.json").write_text("{")
    (tmp_path / ".hidden").write_text("somebody else's")
    assert checkpoint_steps(tmp_path) == []
    assert clean_leftovers(tmp_path) == [".partial-checkpoint-7", ".partial-settings.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "checkpoint-x"]
