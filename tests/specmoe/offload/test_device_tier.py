"""Slots above the host's: without a GPU they are on the CPU, and who is where is tested; on one, streams too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specmoe.offload import ExpertKey, ExpertStore, HostTier, offload
from specmoe.offload.tiers import DeviceTier

from .test_models import generate, prompt, resident, same_bits
from .tiny_checkpoints import write_checkpoint

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_slots_hold_what_was_brought(store: ExpertStore, device: str) -> None:
    with HostTier(store, 4) as host:
        tier = DeviceTier(host, 3, device)
        for layer, experts in ((0, [1, 2]), (1, [0, 2, 5]), (0, [1, 2]), (0, [2, 3])):
            needed = tier.absent(layer, experts)
            keys = [ExpertKey(layer, e) for e in needed]
            host.demand(keys)
            slots = tier.bring(layer, experts, dict(zip(needed, host.wait(keys), strict=True)))
            tier.used(slots)
            tier.copied()
            host.release(keys)
            assert len(set(slots)) == len(experts) and not tier.absent(layer, experts)
            for e, slot in zip(experts, slots, strict=True):
                for name, value in store.read(ExpertKey(layer, e)).items():
                    assert torch.equal(tier.pool.tensors[name][slot].cpu(), value)
        assert (tier.hits, tier.copies) == (1, 8)
        with pytest.raises(ValueError, match="expected at most 3, got 4"):
            tier.bring(0, [0, 1, 2, 3], {})
        tier.reset()
        assert tier.absent(0, [2, 3]) == [2, 3]
        tier.close()


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "switch"])
def test_a_model_on_device_slots_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    model = resident(write_checkpoint(kind, tmp_path / "model"))
    expected = generate(model, 4)
    with offload(
        tmp_path / "model", tmp_path / "store", memory="300KiB", device="cpu", device_memory="200KiB"
    ) as engine:
        assert engine.device_tier is not None
        assert same_bits(generate(engine.model, 4), expected)
        assert engine.device_tier.copies > 0
        assert engine.device_tier.pool.nbytes <= 200 * 1024


def test_missed_experts_are_computed_where_they_lie_if_that_is_cheaper(tmp_path: Path) -> None:
    model = resident(write_checkpoint("qwen3_moe", tmp_path / "model", dtype=torch.float32))
    ids = prompt(2, 9)
    with torch.no_grad():
        expected = model(ids).logits
    with offload(
        tmp_path / "model",
        tmp_path / "store",
        memory="2MiB",
        device="cpu",
        device_memory="500KiB",
        compute_missed_on_host=True,
    ) as engine:
        tier = engine.device_tier
        assert tier is not None
        for copy_seconds in (None, 1e9, 1e-12):
            tier.copy_seconds = copy_seconds
            before = tier.host_computed, tier.copies
            with torch.no_grad():
                got = engine.model(ids).logits
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
            if copy_seconds == 1e9:
                assert tier.host_computed > before[0] and tier.copies == before[1]
            elif copy_seconds is not None:
                assert tier.host_computed == before[0] and tier.copies > before[1]


def test_the_device_and_its_memory_come_together(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    with pytest.raises(ValueError, match="device_memory: expected together with device"):
        offload(tmp_path / "model", tmp_path / "store", memory="1MiB", device="cpu")


def test_an_interrupted_copy_is_not_taken_for_a_whole_one(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with HostTier(store, 4) as host:
        tier = DeviceTier(host, 2, "cpu")

        def bring(expert: int) -> int:
            key = ExpertKey(0, expert)
            host.demand([key])
            try:
                return tier.bring(0, [expert], {expert: host.wait([key])[0]})[0]
            finally:
                host.release([key])

        bring(1)
        with monkeypatch.context() as patch:
            patch.setattr(tier, "_copy", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                bring(2)
        assert tier.absent(0, [1, 2]) == [2]
        for expert in (2, 3, 2):
            slot = bring(expert)
            for name, value in store.read(ExpertKey(0, expert)).items():
                assert torch.equal(tier.pool.tensors[name][slot], value)
        tier.close()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
