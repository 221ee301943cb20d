"""What all tests share."""

from __future__ import annotations

import os
from typing import Any

import pytest

# Beside other workers, threads that wait should sleep. OpenMP reads it when torch is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker that is done take tests from one that is not: some take a minute, thousands a few milliseconds."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
