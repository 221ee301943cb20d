"""Models of transformers, offloaded: the bits of the resident model, whatever is in memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import moe_kernels
from specmoe.offload import StoreError, build_checkpoint_store, offload, record_routes
from specmoe.offload.engine import load_without_experts, moe_blocks
from specmoe.offload.tiers.slots import slot_bytes

from .tiny_checkpoints import EXPERTS, KINDS, TOP_K, VOCABULARY, write_checkpoint

# The sizes are too small for threads to pay, and busy ones slow the reader lanes down.
pytestmark = pytest.mark.usefixtures("one_thread")


def prompt(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def generate(model: Any, tokens: int = 6, ids: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    ids = prompt() if ids is None else ids
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences, torch.stack(output.logits)


def same_bits(got: tuple[torch.Tensor, torch.Tensor], want: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(got[0], want[0]) and torch.equal(got[1].view(torch.uint8), want[1].view(torch.uint8))


def resident(model: Any) -> Any:
    """Return the model with its experts in memory, computed as the offloaded ones are."""
    return model if model.config.model_type in ("switch_transformers", "specmoe") else moe_kernels.patch(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_generates_the_bits_of_the_resident_model(kind: str, tmp_path: Path) -> None:
    model = resident(write_checkpoint(kind, tmp_path / "model"))
    with record_routes(model) as passes:
        expected = generate(model)
    assert torch.isfinite(expected[1]).all() and len(passes) >= 5
    with build_checkpoint_store(tmp_path / "model", tmp_path / "store") as store:
        one = slot_bytes(store.layout)
        for slots in (TOP_K, EXPERTS + 1):
            with offload(tmp_path / "model", store, memory=slots * one, predictor=None) as engine:
                assert same_bits(generate(engine.model), expected)
                for predictor, gated in (("next_gate", False), ("previous_token", False), ("next_gate", True)):
                    engine.configure(predictor, gated=gated)
                    assert same_bits(generate(engine.model), expected)
                stats = engine.tier.settle()
                assert stats.requests == stats.hits + stats.misses + stats.late > 0
                assert stats.peak_bytes <= engine.tier.pool.nbytes <= slots * one


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "switch"])
def test_a_model_in_memory_is_offloaded_and_restored(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    model = resident(write_checkpoint(kind, tmp_path / "model"))
    expected = generate(model)
    with offload(model, memory="1MiB") as engine:
        assert engine.model is model
        assert not list((tmp_path / "cache").iterdir())
        assert same_bits(generate(model), expected)
        engine.restore()
    assert same_bits(generate(model), expected)


@pytest.mark.parametrize("format", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3_fp8", "gpt_oss", "specmoe"])
def test_a_quantized_store_gives_the_bits_of_the_quantized_model(kind: str, format: str, tmp_path: Path) -> None:
    model = resident(write_checkpoint(kind, tmp_path / "model"))
    plain = generate(model)
    options = {"double_quant": False} if format == "nf4" else {}
    expected = generate(moe_kernels.quantized.quantize_experts(model, format, **options))
    assert not torch.equal(expected[1], plain[1])
    store = tmp_path / "store"
    with offload(tmp_path / "model", store, memory="180KiB", quantize=format) as engine:
        assert engine.tier.slots < len(engine.store.layout.blobs)
        assert same_bits(generate(engine.model), expected)
        with pytest.raises(RuntimeError, match="quantized store"):
            engine.restore()
    with pytest.raises(StoreError, match="expected it to be quantized to"):
        offload(tmp_path / "model", store, memory="180KiB", quantize="int8" if format == "nf4" else "nf4")


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3_fp8", "switch"])
def test_loading_leaves_the_experts_on_disk(kind: str, tmp_path: Path) -> None:
    model = write_checkpoint(kind, tmp_path / "model")
    loaded = load_without_experts(tmp_path / "model")
    assert type(loaded) is type(model)
    kept = dict(loaded.named_parameters())
    expected = {n: p for n, p in model.named_parameters() if ".experts." not in n}
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], value) for name, value in expected.items())
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])


def test_the_store_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "one")
    write_checkpoint("olmoe", tmp_path / "other")
    build_checkpoint_store(tmp_path / "one", tmp_path / "store").close()
    with pytest.raises(StoreError, match="made from another model"):
        offload(tmp_path / "other", tmp_path / "store", memory="1MiB")


def test_the_store_of_a_checkpoint_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    write_checkpoint("qwen3_moe", tmp_path / "model")
    offload(tmp_path / "model", memory="1MiB").close()
    kept = list((tmp_path / "cache" / "stores").iterdir())
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    offload(tmp_path / "model", memory="1MiB").close()
    assert kept[0].stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v3", "gpt_oss", "switch"])
def test_scores_rank_as_the_router_does(kind: str, tmp_path: Path) -> None:
    model = write_checkpoint(kind, tmp_path / "model", dtype=torch.float32)
    block = moe_blocks(model)[-1]
    seen: list[torch.Tensor] = []
    block.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    with record_routes(model) as passes, torch.no_grad():
        generate(model, 1)
        scores = block.scores(seen[-1])
    best = scores.topk(block.top_k).indices.sort(1).values
    assert torch.equal(best, torch.from_numpy(passes[-1][-1]).long().sort(1).values)


def test_a_store_that_cannot_be_computed_leaves_nothing_open(tmp_path: Path) -> None:
    write_checkpoint("switch", tmp_path / "model")
    before = len(os.listdir("/dev/fd"))
    for _ in range(2):
        with pytest.raises(ValueError, match="expected weights as they are"):
            offload(tmp_path / "model", tmp_path / "store", memory="1MiB", quantize="int8")
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
