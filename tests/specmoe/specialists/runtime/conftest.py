"""Puts the helpers of the folder above where tests can import them; families are made once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Three adapters on one base."""
    from tiny_family import save_family

    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def other_bases(tmp_path_factory):
    """Three models with bases of their own."""
    from tiny_family import save_other_bases

    return save_other_bases(tmp_path_factory.mktemp("others"))


@pytest.fixture
def short_answers(monkeypatch):
    """An untrained model never ends what it says."""
    import specmoe.specialists.runtime.generation as module

    monkeypatch.setattr(module, "_GROWTH", 0)
    monkeypatch.setattr(module, "_MORE", 12)
