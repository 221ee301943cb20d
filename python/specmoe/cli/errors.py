"""One line for what a user can put right; a traceback only for what is a defect."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

FAILURE_EXIT_CODE = 1
USAGE_EXIT_CODE = 2
INTERRUPT_EXIT_CODE = 130
# What the user can put right by giving something else.
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)


class UsageError(ValueError):
    """A command was given something it cannot work with."""


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command so that user errors and Ctrl-C end it with one line on standard error.

    `UsageError`, any other `ValueError`, a missing or existing file and a diverged loss exit with 2, what else the
    system refuses (an unreadable file, a full disk) with 1, Ctrl-C with 130.
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
        except (ValueError, OSError, FloatingPointError) as error:
            # Where the reader of the output has left, as `head` does, Typer ends quietly.
            if os.environ.get("SPECMOE_DEBUG") or isinstance(error, BrokenPipeError):
                raise
            _print_line(f"error: {error}")
            raise typer.Exit(USAGE_EXIT_CODE if isinstance(error, USER_ERRORS) else FAILURE_EXIT_CODE) from None
        except KeyboardInterrupt as error:
            _print_line(str(error) or "interrupted")
            raise typer.Exit(INTERRUPT_EXIT_CODE) from None

    return wrapped


def _print_line(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr, flush=True)
