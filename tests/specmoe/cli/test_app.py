"""The application as a whole: it starts fast, lists its commands, and ends with the right code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer

from specmoe.cli.errors import UsageError, reports_errors


def test_help_lists_the_commands_and_loads_no_torch():
    program = (
        "import sys\n"
        "from specmoe.cli.app import app\n"
        "try:\n"
        "    app(['--help'])\n"
        "finally:\n"
        "    heavy = sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules))\n"
        "    assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("train", "generate", "demo"))


def test_an_unknown_command_and_an_unknown_option_end_with_2(specmoe):
    assert specmoe("fly").code == 2
    outcome = specmoe("train", "--colour", "red")
    assert outcome.code == 2
    assert "--colour" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("a: expected 1,\n  got 2"), 2, "error: a: expected 1, got 2\n"),
        (ValueError("bad value"), 2, "error: bad value\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.txt"),
            2,
            "error: [Errno 2] No such file or directory: 'x.txt'\n",
        ),
        (PermissionError(13, "Permission denied", "x.txt"), 1, "error: [Errno 13] Permission denied: 'x.txt'\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (FloatingPointError("loss: nan"), 2, "error: loss: nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("state saved"), 130, "state saved\n"),
    ],
    ids=["usage", "value", "file", "permission", "full-disk", "diverged", "ctrl-c", "ctrl-c-saved"],
)
def test_a_user_error_is_one_line_and_a_code(capsys, monkeypatch, error, code, line):
    monkeypatch.delenv("SPECMOE_DEBUG", raising=False)

    @reports_errors
    def command():
        raise error

    with pytest.raises(typer.Exit) as end:
        command()
    assert end.value.exit_code == code
    assert capsys.readouterr() == ("", line)


def test_a_defect_keeps_its_traceback():
    @reports_errors
    def command():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        command()


def test_a_reader_that_left_is_no_error_of_ours(capsys):
    @reports_errors
    def command():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        command()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("PASSIVE", "1000")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", "None")),
        ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
    ],
    ids=["default", "own policy", "own spins"],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(given, expected):
    program = (
        "import os, sys\n"
        "from specmoe.cli import app\n"
        "names = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'\n"
        "app.app = lambda: print(*map(os.environ.get, names), 'torch' in sys.modules)\n"
        "app.main()\n"
    )
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**inherited, **given, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [*expected, "False"], done.stderr


def test_debugging_keeps_every_traceback(monkeypatch):
    monkeypatch.setenv("SPECMOE_DEBUG", "1")

    @reports_errors
    def command():
        raise UsageError("a: expected 1, got 2")

    with pytest.raises(UsageError):
        command()
