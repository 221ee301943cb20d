from __future__ import annotations

import pytest

from specmoe.offload.budget import format_bytes, machine_memory, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GiB", 6 * 1024**3),
        ("64MiB", 64 * 1024**2),
        ("64 MB", 64_000_000),
        ("1.5kib", 1536),
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        ("0.5 TiB", 2**39),
    ],
)
def test_parse_bytes(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


def test_parse_bytes_percentage() -> None:
    assert parse_bytes("75%", whole=1000) == 750
    assert parse_bytes("100%") == machine_memory() > 2**28


@pytest.mark.parametrize(
    "text", ["", "six", "6GigB", "-1GiB", "0", "0%", "101%", "1.2.3MB", "5 ib", 0, -5, True, 1.5, None]
)
def test_parse_bytes_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="--memory: expected a positive size"):
        parse_bytes(text, argument="--memory")  # type: ignore[arg-type]


def test_format_bytes() -> None:
    texts = [format_bytes(n) for n in (5, 1536, 200 * 1024, 6 * 2**20, 1.5 * 2**30, 5000 * 2**30)]
    assert texts == ["5 B", "1.5 KiB", "200 KiB", "6.0 MiB", "1.5 GiB", "5000 GiB"]
