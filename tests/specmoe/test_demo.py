"""`specmoe demo` from its options to its table and picture, on a model and a store that are quickly made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from specmoe.cli.app import app
from specmoe.demo import subject
from specmoe.offload import ExpertStore
from specmoe.offload.bench import ARMS
from specmoe.speculation import RouteTrace, save_routes

ARM_NAMES = [arm.name for arm in ARMS]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Yield a function that runs `specmoe demo` in an empty folder, with a cache folder of its own."""
    monkeypatch.delenv("SPECMOE_DEBUG", raising=False)
    monkeypatch.delenv("MOE_DATA_DIR", raising=False)
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    small = {"hidden_size": 16, "num_heads": 2, "num_layers": 2, "expert_size": 24, "num_experts": 6, "block_size": 64}
    quick = {"batch_size": 4, "steps": 3, "warmup_steps": 1, "eval_every": 3}
    monkeypatch.setattr(subject, "SETTINGS", {**subject.SETTINGS, **small, **quick})
    monkeypatch.setattr(subject, "TRACE_WINDOWS", 6)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(["demo", *map(str, arguments)])
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that tests share which need a trained model, but not its making."""
    return tmp_path_factory.mktemp("shared-cache")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return a trace of 8 sequences over 4 layers of 4 experts, 2 per token."""
    rng = np.random.default_rng(0)
    experts = np.array([[rng.permutation(4)[:2] for _ in range(4)] for _ in range(8 * 12)])
    path = tmp_path / "routes.npz"
    save_routes(RouteTrace(experts.astype(np.uint8), np.arange(9) * 12, 4), path)
    return path


def rows(out: str) -> dict[str, list[str]]:
    """Return the cells of the table's rows, by arm."""
    table = {}
    for line in out.splitlines():
        for name in sorted(ARM_NAMES, key=len, reverse=True):
            if line.strip().startswith(name + " "):
                table[name] = line.strip().removeprefix(name).split()
                break
    return table


def check_report(outcome: Outcome, picture: Path) -> dict[str, list[str]]:
    assert outcome.code == 0, outcome.err
    table = rows(outcome.out)
    assert list(table) == ARM_NAMES
    assert all(float(cells[0]) > 0 for cells in table.values())
    assert all(cells[-1] == "yes" for cells in table.values()), "outputs differ between the arms"
    assert "Prefetch" in outcome.out and "LRU" in outcome.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in outcome.out
    return table


def test_demo_trains_runs_every_arm_and_reuses_model_and_store(demo: Run, tmp_path: Path) -> None:
    first = demo("--tokens", 8)
    table = check_report(first, tmp_path / "specmoe-demo.png")
    assert table["no cache"][2] == "0.0%"
    assert "training a small one" in first.out and "store: wrote" in first.out
    assert "O_DIRECT" in first.out or "buffered" in first.out
    second = demo("--tokens", 8, "--output", "again.png", "--memory", "100%")
    table = check_report(second, tmp_path / "again.png")
    assert "using the one trained before" in second.out and "store: using" in second.out
    assert "specmoe-demo.png" not in second.out


def test_demo_writes_a_damaged_store_again(
    demo: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(trained))
    assert demo("--tokens", 4, "--prompt", "The ").code == 0
    (store,) = trained.glob("demo-*/experts.store")
    with store.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x")
    outcome = demo("--tokens", 4, "--prompt", "The ")
    check_report(outcome, tmp_path / "specmoe-demo.png")
    assert "writing it again" in outcome.out and "footer" in outcome.out
    ExpertStore.open(store, verify="all").close()


def test_demo_without_keeping_removes_the_store(demo: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(trained))
    assert demo("--tokens", 4, "--no-keep").code == 0
    assert not list(trained.glob("**/*.store")) and not list(trained.glob("**/*.tmp"))


def test_replay_of_a_given_trace(demo: Run, trace: Path, tmp_path: Path) -> None:
    options = ("--replay", "--trace", trace, "--size", "80MiB", "--tokens", 8, "--memory", "60%")
    first = demo(*options)
    check_report(first, tmp_path / "specmoe-demo.png")
    assert "6 sequences to learn from, 2 others to replay" in first.out
    assert "8 random experts of Qwen3-30B-A3B's size" in first.out and "store: wrote" in first.out
    assert not (tmp_path / "cache" / "demo").exists() and "training" not in first.out
    second = demo(*options, "--no-keep")
    check_report(second, tmp_path / "specmoe-demo.png")
    assert "store: using" in second.out
    assert not list(tmp_path.glob("cache/*.store"))


def test_replay_takes_the_trace_of_the_data_folder(
    demo: Run, trace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace.rename(tmp_path / "gptoss20b_routes.npz")
    monkeypatch.setenv("MOE_DATA_DIR", str(tmp_path))
    outcome = demo("--replay", "--size", "80MiB", "--tokens", 4, "--memory", "60%", "--no-keep")
    assert outcome.code == 0 and "routes of GPT-OSS-20B" in outcome.out


def test_replay_records_its_own_trace_without_one(
    demo: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(trained))
    outcome = demo("--replay", "--size", "120MiB", "--tokens", 4, "--memory", "60%", "--no-keep")
    check_report(outcome, tmp_path / "specmoe-demo.png")
    assert "routes of the demo's own model" in outcome.out
    assert "of Qwen3-30B-A3B's size" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "lots"], '--memory: expected a positive size such as "6GiB"'),
        (["--memory", "0%"], "--memory: expected a positive size"),
        (["--replay", "--size", "2 apples"], "--size: expected a positive size"),
        (["--size", "1GiB"], "--size: expected together with --replay"),
        (["--trace", "x.npz"], "--trace: expected together with --replay"),
        (["--replay", "--trace", "absent.npz"], "--trace: expected a file, found none at absent.npz"),
        (["--replay", "--prompt", "hello"], "--prompt: expected without --replay"),
        (["--output", "plot.pdf"], "--output: expected a .png file in an existing folder, got plot.pdf"),
        (["--output", "nowhere/plot.png"], "--output: expected a .png file in an existing folder"),
    ],
)
def test_wrong_options_give_one_line(demo: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    outcome = demo(*arguments)
    assert outcome.code == 2
    assert message in outcome.err and len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "cache").exists(), "it began before it looked at its options"


def test_unknown_option(demo: Run) -> None:
    outcome = demo("--speed", "high")
    assert outcome.code == 2 and "--speed" in outcome.err


def test_unreadable_trace(demo: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"not a trace")
    outcome = demo("--replay", "--trace", "bad.npz")
    assert outcome.code == 2
    assert "trace: bad.npz: expected a NumPy .npz file" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_replay_smaller_than_two_layers(demo: Run, trace: Path) -> None:
    outcome = demo("--replay", "--trace", trace, "--size", "50MiB")
    assert outcome.code == 2 and "size: expected at least 72.0 MiB for two layers" in outcome.err


def test_replay_on_a_full_disk(demo: Run, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("specmoe.offload.store.builder.shutil.disk_usage", lambda _: usage)
    outcome = demo("--replay", "--trace", trace, "--size", "80MiB")
    assert outcome.code == 2 and "free bytes" in outcome.err and "got 1000" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("cache/*"))


def test_memory_below_one_token(demo: Run, trace: Path) -> None:
    outcome = demo("--replay", "--trace", trace, "--size", "80MiB", "--memory", "10MiB", "--no-keep")
    assert outcome.code == 2 and "memory: expected at least 18.0 MiB" in outcome.err


def test_prompt_of_unknown_characters(demo: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(trained))
    outcome = demo("--prompt", "\u4e2d\u6587", "--tokens", 4)
    assert outcome.code == 2 and "--prompt: expected characters of the model's vocabulary" in outcome.err


def test_importing_the_command_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "matplotlib")
    script = f"import sys; import specmoe.cli.demo; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_demo_as_a_user_runs_it(tmp_path: Path) -> None:
    environment = {**os.environ, "SPECMOE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "specmoe.cli.app", "demo"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    check_report(Outcome(result.returncode, result.stdout, result.stderr), tmp_path / "specmoe-demo.png")
