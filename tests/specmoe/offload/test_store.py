"""The store: what is written is read, and nothing damaged is ever returned."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specmoe.offload import ExpertKey, ExpertStore, StoreError
from specmoe.offload.store import build_store, files
from specmoe.offload.store.builder import remove_leftovers
from specmoe.offload.store.layout import ALIGN, END_MAGIC, MAGIC, pack_frame, unpack_frame

LAYERS, EXPERTS = 3, 6
MakeLayers = Callable[..., dict[int, dict[str, torch.Tensor]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_read_returns_what_was_built(make_layers: MakeLayers, tmp_path: Path, dtype: torch.dtype, direct: bool) -> None:
    layers = make_layers(dtype)
    ExpertStore.build(layers, tmp_path / "s").close()
    with ExpertStore.open(tmp_path / "s", direct=direct, verify="all") as store:
        assert len(store.layout.keys) == LAYERS * EXPERTS
        for key in store.layout.keys:
            for name, tensor in store.read(key).items():
                assert torch.equal(tensor, layers[key.layer][name][key.expert])


def test_blobs_are_aligned_and_source_is_kept(store: ExpertStore) -> None:
    assert store.layout.source == "a test"
    assert store.layout.blob_bytes % ALIGN == 0
    assert all(blob.offset % ALIGN == 0 for blob in store.layout.blobs.values())
    assert store.file.size == store.layout.file_bytes


def test_mode_says_why_reads_are_buffered(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExpertStore.open(store.path, direct=False) as buffered:
        assert buffered.file.mode == "buffered (asked for)"
    monkeypatch.setattr(files, "_DIRECT", 0)
    with ExpertStore.open(store.path, verify="all") as buffered:
        assert buffered.file.mode == "buffered (this system has no O_DIRECT)"


def test_read_without_preadv(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_DIRECT", 0)
    monkeypatch.delattr(os, "preadv")
    with ExpertStore.open(store.path, verify="all") as opened:
        assert opened.file.mode.startswith("buffered")


def test_open_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="store: no file at"):
        ExpertStore.open(tmp_path / "absent")


def test_open_unknown_verify(store: ExpertStore) -> None:
    with pytest.raises(ValueError, match="verify: expected one of 'header', 'all', got 'some'"):
        ExpertStore.open(store.path, verify="some")


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_open_refuses_a_flipped_byte_in_frame_or_header(store: ExpertStore) -> None:
    header_end = min(blob.offset for blob in store.layout.blobs.values())
    size = store.file.size
    places = [0, 9, 30, 2000, ALIGN - 1, ALIGN, ALIGN + 100, header_end - 1, size - ALIGN, size - ALIGN + 9, size - 1]
    for place in places:
        flip(store.path, place)
        with pytest.raises(StoreError, match="preamble|header|footer"):
            ExpertStore.open(store.path)
        flip(store.path, place)
    ExpertStore.open(store.path, verify="all").close()


@pytest.mark.parametrize("key", [ExpertKey(0, 0), ExpertKey(1, 3), ExpertKey(LAYERS - 1, EXPERTS - 1)], ids=str)
@pytest.mark.parametrize("place", ["first", "last"])
def test_flipped_byte_in_a_blob_names_the_expert(store: ExpertStore, key: ExpertKey, place: str) -> None:
    offset = store.layout.blobs[key].offset
    # The last byte is padding: it is covered too.
    flip(store.path, offset if place == "first" else offset + store.layout.blob_bytes - 1)
    with ExpertStore.open(store.path) as opened:
        others = [other for other in opened.layout.keys if other != key]
        opened.read(others[0])
        with pytest.raises(StoreError, match=rf"expert \(layer {key.layer}, expert {key.expert}\).*checksum"):
            opened.read(key)
    with pytest.raises(StoreError, match=rf"expert \(layer {key.layer}, expert {key.expert}\)"):
        ExpertStore.open(store.path, verify="all")


def test_open_refuses_a_truncated_store(store: ExpertStore) -> None:
    size = store.file.size
    blob = store.layout.blobs[ExpertKey(1, 2)]
    cuts = {
        blob.offset + 5: r"12 bytes|it was cut: 10 experts are lost, the first is expert \(layer 1, expert 2\)",
        size - ALIGN: "it was cut or grown",
        size - 1: "it was cut or grown",
        ALIGN + 10: "it was cut within the header",
        ALIGN - 1: "it is no store, or was cut",
        0: "it is no store, or was cut",
    }
    for length, message in cuts.items():
        os.truncate(store.path, length)
        with pytest.raises(StoreError, match=message):
            ExpertStore.open(store.path)


def test_open_refuses_a_grown_store(store: ExpertStore) -> None:
    with store.path.open("ab") as file:
        file.write(b"x" * ALIGN)
    with pytest.raises(StoreError, match="it was cut or grown"):
        ExpertStore.open(store.path)


def test_store_cut_while_open_names_the_expert(store: ExpertStore) -> None:
    os.truncate(store.path, store.layout.blobs[ExpertKey(2, 0)].offset)
    store.read(ExpertKey(0, 0))
    with pytest.raises(StoreError, match=r"expert \(layer 2, expert 4\) cannot be read: the file ends"):
        store.read(ExpertKey(2, 4))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(9000), bytes(9000)], ids=["empty", "zip", "zeros"])
def test_open_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(StoreError, match="expected"):
        ExpertStore.open(tmp_path / "other")


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_open_refuses_another_version(store: ExpertStore, direct: bool) -> None:
    block = store.path.read_bytes()[:ALIGN]
    frame = unpack_frame(MAGIC, block, "here")
    newer = pack_frame(MAGIC, frame._replace(version=7))
    with store.path.open("r+b") as file:
        file.write(newer)
    with pytest.raises(StoreError, match="expected version 1 or 2 aligned to 4096, got version 7, 4096"):
        ExpertStore.open(store.path, direct=direct)


def test_open_refuses_a_footer_of_another_store(store: ExpertStore) -> None:
    frame = unpack_frame(MAGIC, store.path.read_bytes()[:ALIGN], "here")
    with store.path.open("r+b") as file:
        file.seek(-ALIGN, os.SEEK_END)
        file.write(pack_frame(END_MAGIC, frame._replace(header_checksum=1)))
    with pytest.raises(StoreError, match="footer: says other sizes"):
        ExpertStore.open(store.path)


def test_read_of_an_unknown_expert(store: ExpertStore) -> None:
    with pytest.raises(StoreError, match=r"holds no expert \(layer 9, expert 0\)"):
        store.read(ExpertKey(9, 0))


def test_failed_read_is_retried(make_layers: MakeLayers, store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = store.file.read_into, iter([OSError(errno.EIO, "injected"), None])

    def fails_once(offset: int, target: memoryview, *arrived: Any) -> None:
        failure = next(failures)
        if failure is not None:
            raise failure
        real(offset, target, *arrived)

    monkeypatch.setattr(store.file, "read_into", fails_once)
    assert torch.equal(store.read(ExpertKey(1, 1))["down_proj"], make_layers()[1]["down_proj"][1])


def test_read_that_keeps_failing_is_raised(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(offset: int, target: memoryview, *arrived: Any) -> None:
        calls.append(offset)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(store.file, "read_into", fails)
    with pytest.raises(StoreError, match=r"expert \(layer 1, expert 1\) cannot be read: .*injected"):
        store.read(ExpertKey(1, 1))
    assert len(calls) == 3


def test_short_reads_are_continued(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [v[: max(ALIGN, len(v) // 2)] for v in views], at))
    store.verify()


@pytest.mark.parametrize("method", ["auto", "python"])
def test_parts_arrive_in_order_and_once(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART", 2 * ALIGN)
    content = os.urandom(7 * ALIGN)
    (tmp_path / "data").write_bytes(content)
    file = files.DirectFile(tmp_path / "data", method=method)
    try:
        seen: list[bytes] = []
        target = memoryview(files.aligned_buffer(5 * ALIGN))
        file.read_into(ALIGN, target, lambda part: seen.append(bytes(part)))
        assert b"".join(seen) == bytes(target) == content[ALIGN : 6 * ALIGN]
        seen.clear()
        with pytest.raises(EOFError, match=f"ends at byte {7 * ALIGN}"):
            file.read_into(4 * ALIGN, target, lambda part: seen.append(bytes(part)))
        assert content[4 * ALIGN :].startswith(b"".join(seen))
        assert file.reader is None or file.reader.under_way == file.reader.waiting == 0
    finally:
        file.close()


def test_build_refuses_tensors_of_another_shape(tmp_path: Path) -> None:
    shapes = {0: (4, 4), 1: (4, 5)}
    keys = [ExpertKey(0, 0), ExpertKey(0, 1)]
    with pytest.raises(
        StoreError, match=r"expert \(layer 0, expert 1\): w: expected float32 \(4, 4\), got .* \(4, 5\)"
    ):
        build_store(tmp_path / "s", keys, lambda key: {"w": torch.zeros(shapes[key.expert])})
    assert list(tmp_path.iterdir()) == []


def test_build_refuses_uneven_layers_no_experts_and_odd_dtypes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer 0: expected one number of experts"):
        ExpertStore.build({0: {"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)}}, tmp_path / "s")
    with pytest.raises(ValueError, match="at least one expert"):
        ExpertStore.build({}, tmp_path / "s")
    with pytest.raises(ValueError, match="w: expected one of the dtypes .* got complex64"):
        ExpertStore.build({0: {"w": torch.zeros(2, 3, dtype=torch.complex64)}}, tmp_path / "s")


def test_build_refuses_when_the_disk_is_too_small(
    make_layers: MakeLayers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("specmoe.offload.store.builder.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"expected \d+ free bytes in .*, got 1000"):
        ExpertStore.build(make_layers(), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_build_that_is_interrupted_leaves_the_old_store(
    make_layers: MakeLayers, store: ExpertStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(written: int, total: int) -> None:
        if written == 4:
            raise error

    with pytest.raises(type(error)):
        ExpertStore.build(make_layers(seed=1), store.path, progress=fail)
    assert [p.name for p in store.path.parent.iterdir()] == [store.path.name]
    ExpertStore.open(store.path, verify="all").close()


def test_what_a_killed_build_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    script = """
import os, signal, sys
import torch
from specmoe.offload import ExpertStore
def die(written, total):
    if written == 2:
        os.kill(os.getpid(), signal.SIGKILL)
ExpertStore.build({0: {"w": torch.zeros(4, 8)}}, sys.argv[1], progress=die)
"""
    path = tmp_path / "s"
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob(".s.*.tmp"))) == 1
    ExpertStore.build({0: {"w": torch.ones(4, 8)}}, path).close()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_running_build_is_not_removed(make_layers: MakeLayers, tmp_path: Path) -> None:
    def look(written: int, total: int) -> None:
        assert remove_leftovers(tmp_path / "s") == []

    ExpertStore.build(make_layers(), tmp_path / "s", progress=look).close()


def test_require_same(make_layers: MakeLayers, store: ExpertStore) -> None:
    layers = make_layers()
    one = {name: tensor[2] for name, tensor in layers[1].items()}
    store.require_same(ExpertKey(1, 2), one)
    with pytest.raises(StoreError, match=r"expert \(layer 1, expert 3\).*made from another model"):
        store.require_same(ExpertKey(1, 3), one)
    with pytest.raises(StoreError, match="holds no"):
        store.require_same(ExpertKey(7, 3), one)
    with pytest.raises(StoreError, match="expected the tensors"):
        store.require_same(ExpertKey(1, 2), {"other": one["down_proj"]})
