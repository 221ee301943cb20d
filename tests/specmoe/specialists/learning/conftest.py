"""Puts the helpers of the folder above where tests can import them; each test changes a copy of one family."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def untouched(tmp_path_factory):
    """Three adapters on one base."""
    from tiny_family import save_family

    return save_family(tmp_path_factory.mktemp("family"), spread=0.02)


@pytest.fixture
def family(untouched, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(untouched, tmp_path / "family"))
