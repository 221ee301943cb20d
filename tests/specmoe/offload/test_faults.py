"""What happens to a running model when its store, its disk or its process fails."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_kernels.native import native
from specmoe.offload import ExpertStore, StoreError, build_checkpoint_store, offload

from .test_models import generate, prompt, same_bits
from .tiny_checkpoints import write_checkpoint

KIND = "qwen3_moe"
needs_reader = pytest.mark.skipif(native()[0] is None, reason="the native reader is not there")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(KIND, tmp_path / "model")
    build_checkpoint_store(tmp_path / "model", tmp_path / "store").close()
    return tmp_path / "model"


def start(checkpoint: Path, **options: Any) -> Any:
    return offload(checkpoint, checkpoint.parent / "store", memory="200KiB", direct=True, **options)


@needs_reader
@pytest.mark.parametrize("code", [errno.EIO, errno.ENODEV])
def test_a_read_that_fails_once_changes_nothing(checkpoint: Path, code: int) -> None:
    with start(checkpoint) as engine:
        expected = generate(engine.model)
        engine.configure("next_gate", gated=False)
        engine.store.file.reader.inject_error(0, 1 << 40, code, 2)
        assert same_bits(generate(engine.model), expected)
        assert engine.tier.settle().retried_reads >= 1


@needs_reader
def test_a_read_that_keeps_failing_names_expert_and_cause_and_the_next_one_is_right(checkpoint: Path) -> None:
    with start(checkpoint) as engine:
        expected = generate(engine.model)
        engine.configure("next_gate", gated=False)
        reader = engine.store.file.reader
        reader.inject_error(0, 1 << 40, errno.EIO, 1 << 30)
        with pytest.raises(StoreError, match=r"expert \(layer 0, expert \d\) cannot be read: .*Input/output error"):
            generate(engine.model)
        reader.inject_error(0, 0, 0, 0)
        engine.configure("next_gate", gated=False)
        assert same_bits(generate(engine.model), expected)


@needs_reader
def test_short_reads_change_nothing(checkpoint: Path) -> None:
    with start(checkpoint) as engine:
        expected = generate(engine.model)
        engine.configure("next_gate", gated=False)
        engine.store.file.reader.inject_short(4096)
        assert same_bits(generate(engine.model), expected)


def test_a_store_that_is_cut_while_it_is_read_is_an_error(checkpoint: Path) -> None:
    with start(checkpoint) as engine:
        generate(engine.model, 2)
        path = engine.store.path
        os.truncate(path, 8192)
        engine.configure(None)
        with pytest.raises(StoreError, match=r"expert \(layer 0, expert \d\) cannot be read: the file ends at byte"):
            generate(engine.model, 2)
    with pytest.raises(StoreError, match=r"it was cut: 18 experts are lost, the first is expert \(layer 0, expert 0\)"):
        start(checkpoint)


FULL = """
import resource, signal, sys
from specmoe.offload import StoreError, build_checkpoint_store
# A write beyond it fails with EFBIG, as one beyond the end of a disk fails with ENOSPC.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    build_checkpoint_store(sys.argv[1], sys.argv[2])
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of a file's size")
def test_a_build_that_cannot_write_on_says_so_and_is_continued(checkpoint: Path) -> None:
    whole = (checkpoint.parent / "store").read_bytes()
    again = checkpoint.parent / "again"
    command = [sys.executable, "-c", FULL, str(checkpoint), str(again), str(len(whole) // 2)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout
    assert "the disk is full (File too large); what is written stays in" in out
    assert not again.exists()
    build_checkpoint_store(checkpoint, again).close()
    assert again.read_bytes() == whole
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["again", "model", "store"]


@pytest.mark.parametrize("where", ["preamble", "header", "footer"])
def test_a_flipped_byte_outside_of_the_experts_is_refused(checkpoint: Path, where: str) -> None:
    path = checkpoint.parent / "store"
    data = bytearray(path.read_bytes())
    data[{"preamble": 20, "header": 4200, "footer": len(data) - 4000}[where]] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=where):
        start(checkpoint)


def test_a_store_may_be_replaced_while_it_is_read(checkpoint: Path) -> None:
    with start(checkpoint) as engine:
        expected = generate(engine.model)
        build_checkpoint_store(checkpoint, engine.store.path).close()
        engine.configure(None)
        assert same_bits(generate(engine.model), expected)


RUN = """
import signal, sys, torch
from specmoe.offload import offload
# Of a shell's job in the background it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
ids = torch.tensor([[3, 4, 5, 6]])
with offload(sys.argv[1], sys.argv[2], memory="200KiB") as engine:
    print("begun", flush=True)
    for _ in range(int(sys.argv[3])):
        out = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    print(out.tolist(), flush=True)
"""


def start_run(checkpoint: Path, times: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", RUN, str(checkpoint), str(checkpoint.parent / "store"), str(times)]
    environment = {**os.environ, "SPECMOE_CACHE": str(checkpoint.parent / "cache")}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_two_processes_share_a_store(checkpoint: Path) -> None:
    both = [start_run(checkpoint, 20) for _ in range(2)]
    ends = [process.communicate(timeout=240) for process in both]
    assert all(process.returncode == 0 for process in both), ends
    ids = torch.tensor([[3, 4, 5, 6]])
    with start(checkpoint) as engine:
        here = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert {out.splitlines()[-1] for out, _ in ends} == {str(here.tolist())}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_killed_at_random_moments_a_run_leaves_the_store_whole(how: signal.Signals, checkpoint: Path) -> None:
    chance = random.Random(3)
    before = (checkpoint.parent / "store").read_bytes()
    for _ in range(4):
        process = start_run(checkpoint, 100_000)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0.0, 1.5))
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        if how == signal.SIGINT:
            assert "KeyboardInterrupt" in err and "Exception ignored" not in err
        assert sorted(p.name for p in checkpoint.parent.iterdir() if p.name != "cache") == ["model", "store"]
    assert (checkpoint.parent / "store").read_bytes() == before
    ExpertStore.open(checkpoint.parent / "store", verify="all").close()


@pytest.mark.slow
def test_a_killed_process_leaves_no_store_of_a_model_in_memory(checkpoint: Path) -> None:
    code = RUN.replace("sys.argv[1], sys.argv[2]", "AutoModelForCausalLM.from_pretrained(sys.argv[1])").replace(
        "import signal, sys, torch", "import signal, sys, torch\nfrom transformers import AutoModelForCausalLM"
    )
    environment = {**os.environ, "SPECMOE_CACHE": str(checkpoint.parent / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(checkpoint), "-", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.kill()
    process.communicate(timeout=60)
    assert not list((checkpoint.parent / "cache").iterdir())


def test_the_prompt_is_not_part_of_the_budget(checkpoint: Path) -> None:
    with start(checkpoint) as engine:
        generate(engine.model, 2, prompt(2, 60))
        assert engine.tier.settle().peak_bytes <= engine.tier.pool.nbytes <= 200 * 1024
