"""Puts this folder's helpers where tests can import them, and keeps the five domains small."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def small_domains(monkeypatch, tmp_path):
    """The default domains with few records, and an empty cache."""
    from tiny import records

    import specmoe.lora.default_base
    import specmoe.lora.domains

    def load(domain, source=None, limit=None, seed=0):
        from specmoe.training.data import load_domain

        return load_domain(domain, source) if source else records(domain, 60)

    monkeypatch.setattr(specmoe.lora.domains, "load_domain", load)
    monkeypatch.setattr(specmoe.lora.default_base, "load_domain", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
