"""The harness of the GPU benchmarks, run on a CPU: every row, and workers that hang or die."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu import dispatch, results, run, summary
from gpu.bars import bars
from gpu.plan import GROUPS, rows
from gpu.results import Row

CEILINGS = '{"matmul": 1e12, "copy": 1e11, "read": 1e11}'


def test_every_row_is_measured_or_says_why_not(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, run.__file__, "--device", "cpu", "--small", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md", "gpu.png"]
    data = results.load(tmp_path)
    found = {(row.group, row.case, row.T, row.arm): row for row in results.rows_of(data)}
    for row in rows(torch.device("cpu"), small=True):
        if row.arm in data["unavailable"]:
            continue
        row = found[row.group, row.case, row.T, row.arm]
        assert row.status in ("ok", "skipped"), row
        assert row.reason or row.seconds or row.ratio, row
    for group in ("forward", "forward+backward", "permute", "unpermute", "grouped_lora", "memory", "offload"):
        assert all(row.status == "ok" for row in found.values() if row.group == group), group
    # The figures of a graph need one; that the results are right is known before.
    reasons = {row.reason for row in found.values() if row.status == "skipped" and row.group == "decode"}
    assert reasons == {"CUDA graphs need a GPU"}
    assert "SMALL SIZES" in (tmp_path / "gpu.md").read_text()


def _worker(folder: Path, body: str) -> Path:
    """Write a worker that sends ceilings and then does `body` with each line."""
    script = folder / "worker.py"
    lines = ["import json, os, sys, time", f"print('{CEILINGS}', flush=True)", "for line in sys.stdin:"]
    script.write_text("\n".join([*lines, "    row = json.loads(line)", *(f"    {line}" for line in body.splitlines())]))
    return script


ANSWER = "print(json.dumps(row | {'seconds': 1.0, 'fit': True}), flush=True)"


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("time.sleep(60)", "no answer within"), ("os._exit(7)", "exit status 7"), ("os.abort()", "SIGABRT")],
    ids=["hang", "exit", "abort"],
)
def test_a_row_that_takes_its_worker_down_is_one_row(
    trouble: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "WORKER", _worker(tmp_path, f"if row['arm'] == 'bad': {trouble}\n{ANSWER}"))
    monkeypatch.setitem(dispatch.FOR_A_ROW, "cpu", 1.0)
    data = results.load(tmp_path)
    todo = [Row("forward", "OLMoE", 1, arm) for arm in ("first", "bad", "last")]
    dispatch.Dispatch(data, tmp_path, "cpu", True, time.monotonic() + 60).measure(todo)
    first, bad, last = results.rows_of(results.load(tmp_path))
    assert (first.status, bad.status, last.status) == ("ok", "failed", "ok")
    assert reason in bad.reason


def test_what_takes_its_workers_down_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "WORKER", _worker(tmp_path, f"if row['arm'] != 'good': os._exit(7)\n{ANSWER}"))
    data = results.load(tmp_path)
    arms = ["triton", "triton", "triton", "Liger", "Liger", "good"]
    todo = [Row("decode", "OLMoE", T, arm) for T, arm in enumerate(arms)]
    dispatch.Dispatch(data, tmp_path, "cpu", True, time.monotonic() + 60).measure(
        [*todo, Row("route", "", 1, "triton")]
    )
    states = [row.status for row in results.rows_of(data)]
    assert states == ["failed", "failed", "skipped", "failed", "skipped", "ok", "failed"]
    assert data["rows"][2]["reason"] == "not tried again: the process ended: exit status 7"


def test_what_hangs_in_a_group_is_not_tried_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "WORKER", _worker(tmp_path, f"if row['T'] == 0: time.sleep(60)\n{ANSWER}"))
    monkeypatch.setitem(dispatch.FOR_A_ROW, "cpu", 1.0)
    data = results.load(tmp_path)
    todo = [Row(group, "OLMoE", T, "cuda") for group in ("forward", "decode") for T in (0, 1)]
    todo[2].T = 2
    dispatch.Dispatch(data, tmp_path, "cpu", True, time.monotonic() + 60).measure(todo)
    assert [row.status for row in results.rows_of(data)] == ["failed", "skipped", "ok", "ok"]
    assert data["rows"][1]["reason"] == "not tried again: no answer within 1 s"


def test_a_library_that_is_not_there_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "row |= {'status': 'skipped', 'reason': 'not importable: x'}; open('tried', 'a').write('1')\n"
    monkeypatch.setattr(dispatch, "WORKER", _worker(tmp_path, refused + ANSWER))
    monkeypatch.chdir(tmp_path)
    data = results.load(tmp_path)
    todo = [Row("forward", "OLMoE", T, "Liger") for T in (1, 2)]
    dispatch.Dispatch(data, tmp_path, "cpu", True, time.monotonic() + 60).measure(todo)
    assert data["unavailable"] == {"Liger": "not importable: x"}
    assert Path("tried").read_text() == "1"
    assert not data["rows"]


def test_without_time_the_rows_say_so(tmp_path: Path) -> None:
    data = results.load(tmp_path) | {"ceilings": json.loads(CEILINGS)}
    dispatch.Dispatch(data, tmp_path, "cpu", True, time.monotonic()).measure([Row("route", "OLMoE", 1, "cpu")])
    assert [row.reason for row in results.rows_of(data)] == ["no time left"]


def test_no_gpu_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, run.__file__, "--output", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (2, "no CUDA device: nothing is measured")


def _measured(row: Row) -> Row:
    row.floor, row.seconds, row.operations, row.nbytes, row.bound = 1e-3, 2e-3, 1e9, 1e9, "copy"
    row.ratio, row.ratio_of = (1.04, "a part") if row.group in ("memory", "quantized") else (None, "")
    return row


def test_table_goals_and_figure_of_a_full_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("gpu.arms.ours", lambda device: ["triton", "cuda"])
    data = results.load(tmp_path) | {"device": "a GPU", "ceilings": json.loads(CEILINGS)}
    for row in rows(torch.device("cpu"), small=False):
        results.keep(data, _measured(row))
    assert {row["group"] for row in data["rows"]} == set(GROUPS)
    results.keep(data, Row("route", "Qwen3-30B-A3B", 1, "cuda", status="failed", reason="CUDA error: a | b"))
    summary.write(tmp_path, data)
    table = (tmp_path / "gpu.md").read_text()
    assert "FAILED: CUDA error: a / b" in table
    assert (tmp_path / "gpu.png").stat().st_size > 10_000

    found = bars(results.rows_of(data), set(summary.PEERS))
    # Everything was given, so that every goal has its figure: a goal that looks for a row nobody measures would not.
    assert all(bar.got is not None for bar in found)
    met = {(bar.what, bar.case): bar.met for bar in found}
    assert met["activation memory over x, pre-activation and plan", "OLMoE, T=4096"]
    assert not met["forward, of the matmul ceiling", "OLMoE, T=32768"]
    assert met["forward, faster than SonicMoE", "OLMoE, T=32768"]
    assert not met["forward, faster than Liger", "OLMoE, T=32768"]


def test_the_faster_backend_is_told_for_the_table_of_preferences() -> None:
    found = [_measured(Row("route", "Qwen3-30B-A3B", 64, arm)) for arm in ("triton", "cuda")]
    found += [_measured(Row("decode", "Mixtral-8x7B", 1, arm)) for arm in ("triton", "vLLM")]
    found[1].seconds = 1e-3
    said = summary.lines({"parts": {}, "unavailable": {}, "rows": [vars(row) for row in found]})
    begin = said.index("for moe_kernels/preferences.py:")
    rows_said = [[cell.strip() for cell in line.strip("|").split("|")] for line in said[begin + 4 : -1]]
    assert rows_said == [["route", "Qwen3-30B-A3B", "64", "cuda", "2.00x", "triton"]]


def test_wrong_rows_meet_no_goal(tmp_path: Path) -> None:
    row = _measured(Row("decode", "Mixtral-8x7B", 1, "triton"))
    row.status, row.seconds = "wrong", 1e-3
    assert all(bar.got is None for bar in bars([row], set()))
