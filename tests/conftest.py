"""What all tests share."""

from __future__ import annotations

import os

# Beside other workers, threads that wait should sleep. OpenMP reads it when torch is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
