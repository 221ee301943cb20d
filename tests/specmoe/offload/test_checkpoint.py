"""A store that is made from a checkpoint holds the weights that the loaded model has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from specmoe.offload import ExpertKey, ExpertStore, StoreError, offload
from specmoe.offload.checkpoint import Checkpoint, CheckpointError, ExpertSource, build_checkpoint_store
from specmoe.offload.checkpoint.formats import from_fp8_blocks, from_mxfp4
from specmoe.offload.store import discard_partial, partial_paths

from .tiny_checkpoints import EXPERTS, KINDS, expert_weights, write_checkpoint


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_has_the_weights_of_the_model(kind: str, tmp_path: Path) -> None:
    model = write_checkpoint(kind, tmp_path / "model")
    seen: list[tuple[int, int]] = []
    with build_checkpoint_store(
        tmp_path / "model", tmp_path / "store", progress=lambda *now: seen.append(now)
    ) as store:
        store.verify()
        expected = expert_weights(model)
        assert len(store.layout.groups) == len(expected)
        assert len(store.layout.keys) == len(expected) * EXPERTS
        assert seen == [(i, len(store.layout.keys)) for i in range(len(store.layout.keys) + 1)]
        for layer, (group, experts) in enumerate(zip(store.layout.groups, expected.values(), strict=True)):
            assert group.replace("block_sparse_moe", "mlp") in expected
            for e, tensors in enumerate(experts):
                got = store.read(ExpertKey(layer, e))
                assert list(got) == list(tensors)
                for name, value in tensors.items():
                    assert got[name].dtype == value.dtype and got[name].shape == value.shape
                    assert torch.equal(bits(got[name]), bits(value)), (group, e, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "store"]


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "one")
    write_checkpoint("qwen3_moe", tmp_path / "many", shard="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = (ExpertSource(Checkpoint(tmp_path / name)) for name in ("one", "many"))
    assert one.keys == many.keys
    for key in one.keys[::5]:
        for a, b in zip(one.expert(key).values(), many.expert(key).values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("format", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "switch"])
def test_quantized_experts_are_those_of_the_quantizer(kind: str, format: str, tmp_path: Path) -> None:
    from moe_kernels.quantized_weights import QUANTIZERS

    model = write_checkpoint(kind, tmp_path / "model")
    with build_checkpoint_store(tmp_path / "model", tmp_path / "store", quantize=format) as store:
        assert store.layout.quantization == format
        for layer, experts in enumerate(expert_weights(model).values()):
            got = store.read(ExpertKey(layer, 3))
            for name, value in experts[3].items():
                if value.dim() == 1:
                    assert torch.equal(got[name], value)
                    continue
                options = {"double_quant": False} if format == "nf4" else {}
                w = QUANTIZERS[format](value.t()[None] if kind == "gpt_oss" else value[None], **options)
                for field, part in w.tensors().items():
                    assert torch.equal(got[f"{name}.{field}"].view(-1), part.reshape(-1))


def test_formats_of_few_bits() -> None:
    blocks = torch.tensor([[[0x21] + [0] * 14 + [0xF7]]], dtype=torch.uint8)
    out = from_mxfp4(blocks, torch.tensor([[128]], dtype=torch.uint8), torch.float32)
    assert out.shape == (1, 32)
    assert out[0, :2].tolist() == [1.0, 2.0] and out[0, -2:].tolist() == [12.0, -12.0]
    low = torch.ones(3, 5).to(torch.float8_e4m3fn)
    wide = from_fp8_blocks(low, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (2, 2), torch.float32)
    assert wide.tolist() == [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]
    with pytest.raises(ValueError, match=r"scale: expected shape \(2, 3\), got \(1, 1\)"):
        from_fp8_blocks(low, torch.ones(1, 1), (2, 2), torch.float32)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected .*config.json, found no such file"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected .safetensors files, found none"):
        Checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(CheckpointError, match="it is no safetensors file, or was cut"):
        Checkpoint(tmp_path)


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint("mixtral", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="expected .* bytes, got .* was cut"):
        Checkpoint(tmp_path / "model")


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dense"}))
    with pytest.raises(CheckpointError, match="found none \\(model_type 'dense'\\)"):
        ExpertSource(Checkpoint(tmp_path))


class Stop(BaseException):
    """An interrupt at a chosen moment."""


def stop_at(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise Stop

    return progress


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    path = tmp_path / "store"
    with pytest.raises(Stop):
        build_checkpoint_store(tmp_path / "model", path, progress=stop_at(7))
    assert not path.exists() and all(p.exists() for p in partial_paths(path))
    read: list[ExpertKey] = []
    real = ExpertSource.expert
    monkeypatch.setattr(ExpertSource, "expert", lambda self, key: (read.append(key), real(self, key))[1])
    with build_checkpoint_store(tmp_path / "model", path) as store:
        store.verify()
        # The first expert is looked at for its shapes.
        assert read == [store.layout.keys[0], *store.layout.keys[7:]]
    assert not any(p.exists() for p in partial_paths(path))
    with build_checkpoint_store(tmp_path / "model", tmp_path / "other"):
        assert (tmp_path / "other").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "torn-log", "log-gone", "other-format"])
def test_what_was_damaged_meanwhile_is_written_again(tmp_path: Path, damage: str) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    path = tmp_path / "store"
    with pytest.raises(Stop):
        build_checkpoint_store(tmp_path / "model", path, progress=stop_at(7))
    partial, log = partial_paths(path)
    if damage == "flip":
        data = bytearray(partial.read_bytes())
        data[-100_000] ^= 1
        partial.write_bytes(data)
    elif damage == "cut":
        os.truncate(partial, partial.stat().st_size // 2)
    elif damage == "torn-log":
        log.write_text(log.read_text()[:-5])
    elif damage == "log-gone":
        log.unlink()
    quantize = "nf4" if damage == "other-format" else None
    with build_checkpoint_store(tmp_path / "model", path, quantize=quantize) as store:
        store.verify()
    build_checkpoint_store(tmp_path / "model", tmp_path / "other", quantize=quantize).close()
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_a_second_builder_is_kept_out(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    path = tmp_path / "store"

    def meanwhile(done: int, total: int) -> None:
        if done == 3:
            with pytest.raises(StoreError, match="another process is building it"):
                build_checkpoint_store(tmp_path / "model", path)
            with pytest.raises(StoreError, match="another process is building it"):
                discard_partial(path)

    with build_checkpoint_store(tmp_path / "model", path, progress=meanwhile) as store:
        store.verify()
    assert not discard_partial(path)


def test_a_full_disk_is_said_before_and_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from specmoe.offload.store import resume

    write_checkpoint("qwen3_moe", tmp_path / "model")
    path = tmp_path / "store"
    real = resume.stored_form
    calls = []

    def full(*arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(resume, "stored_form", full)
    with pytest.raises(StoreError, match="the disk is full .* run it again, or delete that file"):
        build_checkpoint_store(tmp_path / "model", path)
    monkeypatch.undo()
    assert not path.exists()
    with build_checkpoint_store(tmp_path / "model", path) as store:
        store.verify()
    small = os.statvfs(tmp_path)
    monkeypatch.setattr(resume.os, "statvfs", lambda _: type("S", (), {"f_bavail": 1, "f_frsize": small.f_frsize}))
    with pytest.raises(StoreError, match=r"expected .* of free space in .*, got 4.0 KiB"):
        build_checkpoint_store(tmp_path / "model", tmp_path / "third")


def test_a_built_store_replaces_an_older_one_at_once(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    path = tmp_path / "store"
    build_checkpoint_store(tmp_path / "model", path).close()
    before = path.read_bytes()
    with pytest.raises(Stop):
        build_checkpoint_store(tmp_path / "model", path, quantize="int8", progress=stop_at(2))
    assert path.read_bytes() == before
    assert discard_partial(path)
    ExpertStore.open(path, verify="all").close()


def test_a_store_that_another_process_has_written_meanwhile_is_kept(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    path = tmp_path / "store"
    build_checkpoint_store(tmp_path / "model", path).close()
    before = path.stat().st_ino
    steps: list[int] = []
    build_checkpoint_store(tmp_path / "model", path, replace=False, progress=lambda done, _: steps.append(done)).close()
    assert not steps and path.stat().st_ino == before and not any(p.exists() for p in partial_paths(path))


def test_the_log_of_a_build_that_was_killed_at_its_end_is_removed(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    path = tmp_path / "store"
    build_checkpoint_store(tmp_path / "model", path).close()
    log = partial_paths(path)[1]
    log.write_text("{}")
    offload(tmp_path / "model", path, memory="1MiB").close()
    assert not log.exists() and path.exists()
