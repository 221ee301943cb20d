"""`specmoe store`, in this process and in ones that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from specmoe.offload import ExpertStore
from specmoe.offload.checkpoint import build_checkpoint_store
from specmoe.offload.store import partial_paths

from ..offload.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint("qwen3_moe", folder)
    return folder


def test_build_verify_info(specmoe: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "experts.store"
    done = specmoe("store", "build", "--model", model, "--out", path, "--quantize", "nf4")
    assert done.code == 0, done.err
    assert "18 experts of 16.0 KiB in 3 layers" in done.out and "nf4" in done.out
    done = specmoe("store", "verify", path)
    assert done.code == 0 and "18 experts are as they were written" in done.out
    done = specmoe("store", "info", path)
    assert done.code == 0 and "gate_up_proj.codes: uint8 (256, 32)" in done.out and "quantization: nf4" in done.out


def test_packed(specmoe: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "experts.store"
    done = specmoe("store", "build", "--model", model, "--out", path, "--pack")
    assert done.code == 0 and ", packed" in done.out, done.err
    done = specmoe("store", "info", path)
    assert done.code == 0 and "packing: bf16-12" in done.out and "quantization: none" in done.out
    assert specmoe("store", "verify", path).code == 0
    done = specmoe("store", "build", "--model", model, "--out", path, "--pack", "--quantize", "nf4")
    assert done.code == 1 and "packing: expected experts in bfloat16" in done.err and path.exists()


def test_what_a_user_can_put_right_is_one_line(specmoe: Any, model: Path, tmp_path: Path) -> None:
    for options, code, message in (
        (("build", "--model", tmp_path / "no", "--out", tmp_path / "s"), 2, "--model: expected a directory"),
        (("build", "--model", model, "--out", tmp_path / "no" / "s"), 2, "--out: expected an existing folder"),
        (("build", "--model", model, "--out", tmp_path / "s", "--quantize", "int3"), 2, "expected nf4 or int8"),
        (("build", "--model", tmp_path, "--out", tmp_path / "s"), 2, "config.json, found no such file"),
        (("verify", tmp_path / "s"), 2, "store: no file at"),
    ):
        done = specmoe("store", *options)
        assert done.code == code and message in done.err and len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_verify_names_the_damaged_expert(specmoe: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with build_checkpoint_store(model, path) as store:
        key = store.layout.keys[10]
        offset = store.layout.blobs[key].offset
    data = bytearray(path.read_bytes())
    data[offset + 7] ^= 4
    path.write_bytes(data)
    done = specmoe("store", "verify", path)
    assert done.code == 1 and f"{key} cannot be read: checksum" in done.err
    os.truncate(path, offset)
    done = specmoe("store", "verify", path)
    assert done.code == 1 and f"the first is {key}" in done.err


BUILD = """
import itertools, os, signal, sys, time
# What a shell starts in the background ignores it, and so does what that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
from specmoe.offload.checkpoint.experts import ExpertSource
real, calls = ExpertSource.expert, itertools.count()
def slow(self, key):
    time.sleep(60 if next(calls) == int(os.environ["STALL"]) else 0.02)
    return real(self, key)
ExpertSource.expert = slow
print("begun", flush=True)
from specmoe.cli.app import app
app(sys.argv[1:])
"""


def start_build(model: Path, path: Path, stall: int = -1) -> subprocess.Popen[str]:
    """Start a build that takes its time with each expert, and a minute for the one of number `stall`."""
    arguments = [sys.executable, "-c", BUILD, "store", "build", "--model", str(model), "--out", str(path)]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "STALL": str(stall)}
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def test_ctrl_c_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    process = start_build(model, path, stall=12)
    log = partial_paths(path)[1]
    end = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 4):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in err
    build_checkpoint_store(model, path).close()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_killed_at_random_moments_a_build_still_ends_with_a_whole_store(
    how: signal.Signals, model: Path, tmp_path: Path
) -> None:
    path, chance = tmp_path / "s", random.Random(7)
    build_checkpoint_store(model, tmp_path / "whole").close()
    for _ in range(8):
        process = start_build(model, path)
        time.sleep(chance.uniform(0.0, 3.0))
        process.send_signal(how)
        process.communicate(timeout=60)
        if path.exists():
            ExpertStore.open(path, verify="all").close()
            path.unlink()
    build_checkpoint_store(model, path).close()
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "whole"]


@pytest.mark.slow
def test_two_builders_at_once(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    both = [start_build(model, path) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends)[0] == 0
    assert all(code == 0 or "another process is building it" in err for err, code in ends), ends
    ExpertStore.open(path, verify="all").close()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
