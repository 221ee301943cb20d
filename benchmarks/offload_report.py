"""How fast experts come from disk here: by way of reading, by lanes, and what checking them costs.

    python benchmarks/offload_report.py [--folder PATH] [--expert 9MiB] [--total 1GiB]

Each cell is the median of several passes over all experts in random order, in GB/s; "cold" passes begin with the file's
pages evicted.
"""

from __future__ import annotations

import argparse
import mmap
import queue
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash

from specmoe.offload import ExpertKey, ExpertStore, format_bytes, parse_bytes
from specmoe.offload.store import DirectFile, aligned_buffer, build_store, drop_cached_pages
from specmoe.offload.store.layout import Blob

Read = Callable[[ExpertKey, memoryview], object]
PASSES = 3
LANES = (1, 2, 4)
# All unchecked.
METHODS = ("io_uring", "threads", "python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to put the file; a temporary folder by default")
    parser.add_argument("--expert", default="9MiB")
    parser.add_argument("--total", default="1GiB")
    options = parser.parse_args()
    expert = parse_bytes(options.expert, argument="--expert")
    count = max(1, parse_bytes(options.total, argument="--total") // expert)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "report.store"
        block = torch.randint(0, 256, (expert,), dtype=torch.uint8)
        keys = [ExpertKey(0, e) for e in range(count)]
        build_store(path, keys, lambda key: {"w": block.roll(key.expert)})
        report(path, keys)


class Mapped:
    """Reads through a memory map, which is made anew for each pass: pages in a map are not evicted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.map: mmap.mmap | None = None

    def forget(self) -> None:
        if self.map is not None:
            self.map.close()
        drop_cached_pages(self.path)
        with self.path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, offset: int, target: memoryview) -> None:
        assert self.map is not None
        with memoryview(self.map) as whole, whole[offset : offset + len(target)] as part:
            target[:] = part


def report(path: Path, keys: list[ExpertKey]) -> None:
    mapped = Mapped(path)
    with ExpertStore.open(path) as direct, ExpertStore.open(path, direct=False) as buffered:
        if direct.layout.packing:
            raise SystemExit(f"{path}: expected a store as it is, got a packed one")
        size, blobs = direct.layout.blob_bytes, direct.layout.blobs
        files = {name: file for name in METHODS if (file := opened_by(path, name)) is not None}
        print(f"{len(keys)} experts of {format_bytes(size)}; opened {direct.file.mode}\n")
        ways: list[tuple[str, Read, Callable[[], object] | None]] = [
            ("direct", direct.read_into, None),
            *((f"direct, {name}", unchecked(file, blobs), None) for name, file in files.items()),
            ("buffered, cold", buffered.read_into, lambda: drop_cached_pages(path)),
            ("buffered, warm", buffered.read_into, None),
            ("memory map, cold", lambda key, target: mapped.read(blobs[key].offset, target), mapped.forget),
        ]
        print("way".ljust(20) + "".join(f"{lanes} lanes".rjust(10) for lanes in LANES) + "   GB/s")
        for name, read, prepare in ways:
            cells = [throughput(keys, size, read, lanes, prepare) for lanes in LANES]
            print(name.ljust(20) + "".join(f"{cell:10.2f}" for cell in cells), flush=True)
    data = aligned_buffer(size)
    view = memoryview(data)
    begin = time.perf_counter()
    for _ in range(20):
        xxhash.xxh3_64_intdigest(view)
    seconds = (time.perf_counter() - begin) / 20
    print(f"\nchecksum alone: {size / seconds / 1e9:.1f} GB/s, {1e3 * seconds:.2f} ms an expert")


def opened_by(path: Path, method: str) -> DirectFile | None:
    """Open the file with one way to carry reads out; None where it does not work here."""
    try:
        return DirectFile(path, method=method)
    except ValueError:
        return None


def unchecked(file: DirectFile, blobs: dict[ExpertKey, Blob]) -> Read:
    """Return what reads an expert without checking it."""
    return lambda key, target: file.read_into(blobs[key].offset, target)


def throughput(keys: list[ExpertKey], size: int, read: Read, lanes: int, prepare: Callable[[], object] | None) -> float:
    """Return the median GB/s of reading all experts with so many threads; `prepare` is called before each pass."""
    rates = []
    buffers = [memoryview(aligned_buffer(size)) for _ in range(lanes)]
    for number in range(PASSES):
        if prepare is not None:
            prepare()
        waiting: queue.SimpleQueue[ExpertKey | None] = queue.SimpleQueue()
        for key in random.Random(number).sample(keys, len(keys)):
            waiting.put(key)
        for _ in range(lanes):
            waiting.put(None)

        def work(buffer: memoryview, waiting: queue.SimpleQueue[ExpertKey | None] = waiting) -> None:
            while (key := waiting.get()) is not None:
                read(key, buffer)

        threads = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(len(keys) * size / (time.perf_counter() - begin) / 1e9)
    return statistics.median(rates)


if __name__ == "__main__":
    main()
