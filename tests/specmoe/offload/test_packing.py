"""Packed stores: what is written is read to the bit, in a quarter less of the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_kernels.native import native
from specmoe.offload import ExpertKey, ExpertStore, StoreError, offload
from specmoe.offload.checkpoint import build_checkpoint_store
from specmoe.offload.store import packing, partial_paths
from specmoe.offload.store.layout import END_MAGIC, MAGIC, pack_frame, unpack_frame
from specmoe.offload.store.packing import LISTED, pack, packed_bytes, unpack, unpacked

from .test_models import generate, resident, same_bits
from .tiny_checkpoints import expert_weights, write_checkpoint

PAGE = 4096
core, _ = native()
WAYS = [
    pytest.param("native", marks=pytest.mark.skipif(not hasattr(core, "unpack_bf16"), reason="no native core")),
    "numpy",
]


def weights(pages: int, seed: int = 0, spread: float = 0.02) -> np.ndarray:
    values = spread * torch.randn(pages * PAGE // 2, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16().view(torch.uint8).numpy().copy()


def round_trip(blob: np.ndarray, monkeypatch: pytest.MonkeyPatch, way: str, spans: Any = None) -> np.ndarray:
    """Packs and unpacks in place, as the store does."""
    if way == "numpy":
        monkeypatch.setattr(packing, "native", lambda: (None, "not here"))
    stored = pack(blob, spans or [(0, len(blob))])
    assert len(stored) == packed_bytes(len(blob))
    target = bytearray(b"\xee" * len(blob))
    target[-len(stored) :] = stored.tobytes()
    whole = memoryview(target)
    unpack(whole, whole[len(blob) - len(stored) :])
    return np.frombuffer(target, dtype=np.uint8)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pages", [1, 2, 3, 37])
def test_round_trip(pages: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = weights(pages)
    assert np.array_equal(round_trip(blob, monkeypatch, way), blob)
    if pages == 37:
        assert packed_bytes(len(blob)) < 0.79 * len(blob)


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_value(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = weights(64)
    values = blob.view("<u2")
    odd = [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x0001, 0x807F, 0x7F7F, 0x3F80]
    places = np.random.default_rng(0).choice(len(values), 40 * len(odd), replace=False)
    values[places] = odd * 40
    values[[0, 1, 31, 32, 63, 64, -64, -1]] = 0x7F80
    assert np.array_equal(round_trip(blob, monkeypatch, way), blob)


@pytest.mark.parametrize("lowest", [0, 1, 120, 241])
def test_exponents_at_both_ends(lowest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(lowest, lowest + 15, 4096) << 7 | rng.integers(0, 128, 4096) | rng.integers(0, 2, 4096) << 15
    blob = values.astype("<u2").view(np.uint8)
    for way in ("native", "numpy") if hasattr(core, "unpack_bf16") else ("numpy",):
        assert np.array_equal(round_trip(blob, monkeypatch, way), blob)


def test_as_many_listed_values_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = weights(8)
    values = blob.view("<u2")
    values[:] = 0x3F80
    room = len(values) // LISTED
    values[-room:] = 0
    assert np.array_equal(round_trip(blob, monkeypatch, "native"), blob)
    values[-room - 1 :] = 0
    with pytest.raises(ValueError, match=f"at most {room} of {len(values)} values .* got {room + 1}"):
        pack(blob, [(0, len(blob))])


def test_what_lies_between_tensors_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = weights(2)
    blob[1000:3000] = 0
    spans = [(0, 1000), (3000, len(blob))]
    found = round_trip(blob, monkeypatch, "native", spans)
    for begin, end in spans:
        assert np.array_equal(found[begin:end], blob[begin:end])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word, value", [(0, 256), (1, 17), (2, 4096)], ids=["exponent", "count", "position"])
def test_bytes_that_are_no_packed_ones(word: int, value: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "numpy":
        monkeypatch.setattr(packing, "native", lambda: (None, "not here"))
    blob = weights(2)
    blob.view("<u2")[5] = 0
    stored = pack(blob, [(0, len(blob))])
    stored[:12].view("<u4")[word] = value
    with pytest.raises(ValueError, match="expected"):
        unpack(memoryview(bytearray(len(blob))), memoryview(bytearray(stored.tobytes())))


def test_native_is_the_reference() -> None:
    blob = weights(5, seed=3)
    assert np.array_equal(unpacked(pack(blob, [(0, len(blob))]), len(blob)), blob)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "mixtral"])
def test_a_packed_store_gives_the_bits_of_the_resident_model(kind: str, tmp_path: Path) -> None:
    model = write_checkpoint(kind, tmp_path / "model")
    plain = build_checkpoint_store(tmp_path / "model", tmp_path / "plain")
    packed = build_checkpoint_store(tmp_path / "model", tmp_path / "packed", pack=True)
    with plain, packed:
        assert packed.layout.packing == packing.NAME
        assert packed.file.size == packed.layout.file_bytes < plain.file.size
        packed.verify()
        for key in plain.layout.keys:
            assert all(
                torch.equal(a, b) for a, b in zip(plain.read(key).values(), packed.read(key).values(), strict=True)
            )
    want = generate(resident(model))
    with offload(tmp_path / "model", tmp_path / "packed", memory="50%" if kind != "mixtral" else "1MiB") as engine:
        assert same_bits(generate(engine.model), want)
        assert engine.stats.demand_bytes % packed.layout.stored_bytes == 0 < engine.stats.demand_bytes
    for check in (True, False):
        with offload(tmp_path / "model", tmp_path / "packed", memory="1MiB", check=check) as engine:
            assert same_bits(generate(engine.model), want)


def test_the_default_store_says_that_it_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    write_checkpoint("qwen3_moe", tmp_path / "model")
    with offload(tmp_path / "model", memory="1MiB", pack=True) as engine:
        assert engine.store.layout.packing and engine.store.path.name.endswith("-packed.store")
    with offload(tmp_path / "model", memory="1MiB") as engine:
        assert not engine.store.layout.packing


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True).close()
    with ExpertStore.open(tmp_path / "s") as store:
        place = store.layout.blobs[ExpertKey(0, 1)].offset + 40
    raw = bytearray((tmp_path / "s").read_bytes())
    raw[place] ^= 4
    (tmp_path / "s").write_bytes(raw)
    with ExpertStore.open(tmp_path / "s") as store:
        store.read(ExpertKey(0, 0))
        with pytest.raises(StoreError, match=r"expert \(layer 0, expert 1\) cannot be read: checksum"):
            store.read(ExpertKey(0, 1))


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    whole = build_checkpoint_store(tmp_path / "model", tmp_path / "whole", pack=True)
    whole.close()

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True, progress=stop)
    assert partial_paths(tmp_path / "s")[0].exists()
    seen: list[int] = []
    build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True, progress=lambda n, _: seen.append(n)).close()
    assert seen[0] > 0 and (tmp_path / "s").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_cannot_be_packed_is_an_error(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "float", dtype=torch.float32)
    with pytest.raises(StoreError, match="packing: expected experts in bfloat16, got float32"):
        build_checkpoint_store(tmp_path / "float", tmp_path / "s", pack=True)
    write_checkpoint("qwen3_moe", tmp_path / "model")
    with pytest.raises(StoreError, match="packing: expected experts in bfloat16, got"):
        build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True, quantize="int8")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(file)
    for name in tensors:
        if "experts.2.up_proj" in name:
            tensors[name][:, ::2] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"expert 2\): cannot be packed: .* build the store without packing"):
        build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True)
    # Going on from there could only end there again.
    assert not (tmp_path / "s").exists() and not any(path.exists() for path in partial_paths(tmp_path / "s"))
    with pytest.raises(ValueError, match="pack: expected a checkpoint's directory"):
        offload(torch.nn.Linear(2, 2), memory="1MiB", pack=True)


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = weights(16)
    blob.view("<u2")[[0, 700, 8191, 8192, -1]] = 0
    whole = pack(blob, [(0, 5000), (5120, len(blob))])
    monkeypatch.setattr(packing, "PIECE", 8192)
    assert np.array_equal(pack(blob, [(0, 5000), (5120, len(blob))]), whole)


def test_a_share_of_the_experts_is_of_what_they_take_in_memory(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    with build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True) as store:
        layout = store.layout
        assert layout.expert_bytes == len(layout.keys) * layout.blob_bytes > layout.payload_bytes
        with offload(tmp_path / "model", store, memory="2MiB", device="cpu", device_memory="100%") as engine:
            assert engine.device_tier is not None and engine.device_tier.slots == len(layout.keys)


def test_another_models_weights_are_said_to_be_so(tmp_path: Path) -> None:
    model = write_checkpoint("qwen3_moe", tmp_path / "model")
    with build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True) as store:
        (_, experts), *_ = expert_weights(model).items()
        store.require_same(ExpertKey(0, 2), experts[2])
        changed = {name: value.clone() for name, value in experts[2].items()}
        for value in changed.values():
            value[0] = 0
        with pytest.raises(StoreError, match="it was made from another model"):
            store.require_same(ExpertKey(0, 2), changed)


def test_a_store_as_it_is_is_not_taken_for_a_packed_one(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    build_checkpoint_store(tmp_path / "model", tmp_path / "s").close()
    with pytest.raises(StoreError, match="expected it to be packed, got weights as they are"):
        offload(tmp_path / "model", tmp_path / "s", memory="1MiB", pack=True)


def test_a_frame_of_another_version_is_refused(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True).close()
    raw = bytearray((tmp_path / "s").read_bytes())
    for magic, place in ((MAGIC, 0), (END_MAGIC, len(raw) - PAGE)):
        frame = unpack_frame(magic, bytes(raw[place : place + PAGE]), "here")
        raw[place : place + PAGE] = pack_frame(magic, frame._replace(version=1))
    (tmp_path / "s").write_bytes(raw)
    with pytest.raises(StoreError, match="header: expected version 2, got 1"):
        ExpertStore.open(tmp_path / "s")


def test_readers_of_the_first_version_refuse_it(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    build_checkpoint_store(tmp_path / "model", tmp_path / "s", pack=True).close()
    assert (tmp_path / "s").read_bytes()[8:12] == (2).to_bytes(4, "little")
