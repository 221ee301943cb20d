"""The peer that computes experts where they lie in a memory map: it must run for its figures to be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peers import mapped_experts

from moe_kernels import patch
from specmoe.offload.checkpoint import build_checkpoint_store

from ..specmoe.offload.tiny_checkpoints import write_checkpoint


def test_it_has_the_bits_of_the_resident_model(tmp_path: Path) -> None:
    model = patch(write_checkpoint("qwen3_moe", tmp_path / "model"))
    ids = torch.arange(1, 13).view(2, 6)
    with build_checkpoint_store(tmp_path / "model", tmp_path / "store") as store, torch.no_grad():
        mapped = mapped_experts.load(tmp_path / "model", store)
        assert torch.equal(mapped(ids).logits, model(ids).logits)
    packed = build_checkpoint_store(tmp_path / "model", tmp_path / "packed", pack=True)
    with packed, pytest.raises(SystemExit, match="expected a store as it is"):
        mapped_experts.load(tmp_path / "model", packed)
