"""The native reader: what it returns, in which order, and what becomes of errors."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_kernels.native import native

MODULE, REASON = native()
pytestmark = pytest.mark.skipif(MODULE is None, reason=str(REASON))

PAGE = 4096
PAGES = 64
CONTENT = bytes((7 * i + i // 251) % 256 for i in range(PAGES * PAGE))


def methods() -> list[str]:
    """Return what can carry reads out here."""
    fd = os.open(__file__, os.O_RDONLY)
    try:
        MODULE.Reader(fd, "io_uring").close()
    except (RuntimeError, AttributeError):
        return ["threads"]
    finally:
        os.close(fd)
    return ["io_uring", "threads"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(params=["direct", "buffered"])
def fd(request: pytest.FixtureRequest, path: Path) -> Iterator[int]:
    flag = os.O_DIRECT if request.param == "direct" and hasattr(os, "O_DIRECT") else 0
    try:
        fd = os.open(path, os.O_RDONLY | flag)
    except OSError:
        pytest.skip("the file system has no O_DIRECT")
    yield fd
    os.close(fd)


@pytest.fixture(params=methods() if MODULE is not None else ["threads"])
def open_reader(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    opened = []

    def open_one(fd: int, **options: Any) -> Any:
        opened.append(MODULE.Reader(fd, request.param, **{"lanes": 3, "depth": 4, "piece_bytes": PAGE, **options}))
        assert opened[-1].method == request.param
        return opened[-1]

    yield open_one
    for reader in opened:
        reader.close()


@pytest.fixture
def held(path: Path) -> Iterator[int]:
    """A pipe that nobody writes into: what began stays under way."""
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDWR)
    yield held
    os.close(held)


def reader_of(held: int, open_reader: Callable[..., Any], depth: int) -> Any:
    """Open a reader of such a pipe; skip where it cannot read one."""
    reader = open_reader(held, lanes=1, depth=depth)
    if reader.method == "threads":
        pytest.skip("pread refuses a pipe")
    return reader


def buffer(pages: int = PAGES) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE)


def test_reads_fill_their_buffers(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd)
    whole, parts = buffer(), [buffer(3) for _ in range(20)]
    numbers = [reader.submit(i * PAGE, part, urgent=i % 2 == 0) for i, part in enumerate(parts)]
    assert reader.wait(reader.submit(0, whole)) is None
    assert whole[:] == CONTENT
    for i, (number, part) in enumerate(zip(numbers, parts, strict=True)):
        assert reader.wait(number) is None
        assert part[:] == CONTENT[i * PAGE : (i + 3) * PAGE]
    assert reader.waiting == reader.under_way == 0


def test_nothing_is_read_into_an_empty_buffer(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd)
    assert reader.wait(reader.submit(0, bytearray())) is None


def test_short_reads_are_continued(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd, piece_bytes=8 * PAGE)
    reader.inject_short(PAGE)
    target = buffer()
    assert reader.wait(reader.submit(0, target)) is None
    assert target[:] == CONTENT


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM])
def test_an_error_is_reported_once_and_the_next_read_is_right(
    fd: int, open_reader: Callable[..., Any], code: int
) -> None:
    reader = open_reader(fd)
    reader.inject_error(9 * PAGE, 9 * PAGE + 1, code, 1)
    target = buffer()
    failure = reader.wait(reader.submit(0, target))
    assert failure == (code, f"{os.strerror(code)} (errno {code}) at byte {9 * PAGE}")
    assert reader.wait(reader.submit(0, target)) is None
    assert target[:] == CONTENT


def test_errors_of_one_request_leave_the_others_alone(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd)
    reader.inject_error(0, PAGE, errno.EIO, 1000)
    bad, good = buffer(), buffer(8)
    numbers = reader.submit(0, bad), reader.submit(20 * PAGE, good)
    assert reader.wait(numbers[0])[0] == errno.EIO
    assert reader.wait(numbers[1]) is None and good[:] == CONTENT[20 * PAGE : 28 * PAGE]


@pytest.mark.parametrize("cut", [PAGE, 100], ids=["at-a-page", "within-one"])
def test_a_truncated_file_says_where_it_ends(path: Path, fd: int, open_reader: Callable[..., Any], cut: int) -> None:
    size = 10 * PAGE + cut
    os.truncate(path, size)
    reader = open_reader(fd, piece_bytes=4 * PAGE)
    assert reader.wait(reader.submit(0, buffer())) == (-1, f"the file ends at byte {size}")
    assert reader.wait(reader.submit(0, buffer(10))) is None


def test_only_what_has_not_begun_is_cancelled(held: int, open_reader: Callable[..., Any]) -> None:
    # The first piece is held back, and with it everything behind.
    reader = reader_of(held, open_reader, depth=1)
    first, second = bytearray(PAGE), bytearray(PAGE)
    numbers = reader.submit(0, first), reader.submit(0, second)
    assert reader.under_way == 1 and reader.waiting == 1
    assert not reader.cancel(numbers[0])
    assert reader.cancel(numbers[1]) and not reader.cancel(numbers[1])
    assert reader.wait(numbers[1])[0] == errno.ECANCELED
    os.write(held, bytes(PAGE))
    assert reader.wait(numbers[0]) is None


def test_guesses_leave_room_for_demands(held: int, open_reader: Callable[..., Any]) -> None:
    reader = reader_of(held, open_reader, depth=16)
    guesses = [reader.submit(0, bytearray(PAGE), urgent=False) for _ in range(9)]
    assert reader.under_way == 4 and reader.waiting == 5
    demands = [reader.submit(0, bytearray(PAGE), urgent=True) for _ in range(3)]
    assert reader.under_way == 7 and reader.waiting == 5
    for _ in range(12):
        os.write(held, bytes(PAGE))
    for number in (*guesses, *demands):
        assert reader.wait(number) is None


def test_urgent_reads_overtake(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd, lanes=1, depth=1)
    slow = [reader.submit(0, buffer(), urgent=False) for _ in range(200)]
    assert reader.wait(reader.submit(0, buffer(1), urgent=True)) is None
    assert not reader.ready(slow[-1])
    for number in slow:
        assert reader.wait(number) is None


def test_a_promoted_guess_is_a_demand(held: int, open_reader: Callable[..., Any]) -> None:
    reader = reader_of(held, open_reader, depth=16)
    guesses = [reader.submit(0, bytearray(2 * PAGE), urgent=False) for _ in range(4)]
    assert reader.under_way == 4 and reader.waiting == 2
    # Of the last, nothing has begun: all of it begins now.
    assert reader.promote(guesses[3]) and not reader.promote(guesses[3])
    assert reader.under_way == 6 and reader.waiting == 1
    # The two pieces of the first are under way; they leave their places to those of the third.
    assert reader.promote(guesses[0])
    assert reader.under_way == 8 and reader.waiting == 0
    for _ in range(8):
        os.write(held, bytes(PAGE))
    for number in guesses:
        assert reader.wait(number) is None
    assert not reader.promote(guesses[1]) and not reader.promote(12345)
    # And the count of guesses under way is right again.
    more = [reader.submit(0, bytearray(PAGE), urgent=False) for _ in range(9)]
    assert reader.under_way == 4
    for _ in range(9):
        os.write(held, bytes(PAGE))
    for number in more:
        assert reader.wait(number) is None


def test_promoting_while_reads_end(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd, depth=3)
    for _ in range(30):
        parts = [buffer(8) for _ in range(12)]
        numbers = [reader.submit(i * PAGE, part, urgent=False) for i, part in enumerate(parts)]
        for number in numbers[::-1]:
            reader.promote(number)
        for i, (number, part) in enumerate(zip(numbers, parts, strict=True)):
            assert reader.wait(number) is None
            assert part[:] == CONTENT[i * PAGE : (i + 8) * PAGE]
    assert reader.waiting == reader.under_way == 0


def test_closing_cancels_what_waits(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd, lanes=1, depth=1)
    numbers = [reader.submit(0, buffer()) for _ in range(50)]
    reader.close()
    reader.close()
    codes = {failure if (failure := reader.wait(number)) is None else failure[0] for number in numbers}
    assert codes <= {None, errno.ECANCELED}
    with pytest.raises(RuntimeError, match="closed"):
        reader.submit(0, buffer())


def test_many_threads_share_a_reader(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd, depth=8)
    wrong: list[object] = []

    def work(seed: int) -> None:
        target = buffer(5)
        for i in range(40):
            page = (seed * 13 + i * 7) % (PAGES - 5)
            failure = reader.wait(reader.submit(page * PAGE, target, urgent=i % 3 > 0))
            if failure is not None or target[:] != CONTENT[page * PAGE : (page + 5) * PAGE]:
                wrong.append((seed, i, failure))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_is_told(fd: int, open_reader: Callable[..., Any]) -> None:
    reader = open_reader(fd)
    child = os.fork()
    if child == 0:
        try:
            reader.submit(0, buffer())
        except RuntimeError as error:
            os._exit(0 if "before fork" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "options", [{"lanes": 0}, {"depth": 0}, {"piece_bytes": 100}, {"guesses": 0}, {"method": "magic"}]
)
def test_wrong_options_are_refused(path: Path, options: dict[str, Any]) -> None:
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(RuntimeError, match="Reader: "):
        MODULE.Reader(fd, **options)
    os.close(fd)
