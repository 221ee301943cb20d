"""One line for what a user can put right; a traceback only for what is a defect."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

USAGE_EXIT_CODE = 2
INTERRUPT_EXIT_CODE = 130


class UsageError(ValueError):
    """A command was given something it cannot work with."""


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command so that user errors and Ctrl-C end it with one line on standard error.

    `UsageError`, any other `ValueError`, a missing or existing file and a diverged loss exit with 2, Ctrl-C with 130.
    With `SPECMOE_DEBUG` set the error is raised as it is.

    Args:
        command: the command's function.

    Returns:
        The wrapped function, with the same signature.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
            if os.environ.get("SPECMOE_DEBUG"):
                raise
            _print_line(f"error: {error}")
            raise typer.Exit(USAGE_EXIT_CODE) from None
        except KeyboardInterrupt as error:
            _print_line(str(error) or "interrupted")
            raise typer.Exit(INTERRUPT_EXIT_CODE) from None

    return wrapped


def _print_line(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr, flush=True)
