"""The base that needs no network: made once, whole or not at all."""

from __future__ import annotations

import pytest
import torch
from tiny import interrupt_after

from specmoe.lora.default_base import BaseSettings, default_base
from specmoe.training import TrainingInterrupted

SETTINGS = BaseSettings(
    hidden_size=32, intermediate_size=48, layers=1, heads=2, head_size=16, vocab_size=300, context=64, steps=8,
    batch_size=4, max_length=64, precision="float32",
)  # fmt: skip


def test_it_is_made_once_and_the_same_after_an_interruption(small_domains, monkeypatch, tmp_path):
    whole = default_base(SETTINGS)
    (cached,) = (tmp_path / "cache" / "specmoe").iterdir()
    assert cached.name.startswith("lora-base-")
    written = (cached / "model.safetensors").stat().st_mtime_ns
    assert default_base(SETTINGS).digest == whole.digest
    assert (cached / "model.safetensors").stat().st_mtime_ns == written
    assert not any(p.requires_grad for p in whole.model.parameters())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        with pytest.raises(TrainingInterrupted):
            default_base(SETTINGS)
    again = default_base(SETTINGS)
    assert again.digest == whole.digest
    assert torch.equal(again.model.model.norm.weight, whole.model.model.norm.weight)


def test_a_damaged_one_is_made_again(small_domains, tmp_path):
    whole = default_base(SETTINGS)
    (cached,) = (tmp_path / "cache" / "specmoe").iterdir()
    (cached / "model.safetensors").write_bytes(b"no")
    assert default_base(SETTINGS).digest == whole.digest
