from __future__ import annotations

from pathlib import Path

import pytest

from specmoe.offload import budget
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


@pytest.mark.parametrize(
    ("groups", "limits"),
    [
        ("0::/outer/inner\n", {"outer/memory.max": "70", "outer/inner/memory.max": "max"}),
        ("0::/outer/inner\n", {"memory.max": "90", "outer/memory.max": "80", "outer/inner/memory.max": "70"}),
        ("9:cpu:/x\n4:memory:/a/b\n", {"memory/memory.limit_in_bytes": "99", "memory/a/memory.limit_in_bytes": "70"}),
        ("", {"memory.max": "70"}),
    ],
    ids=["above-v2", "nested-v2", "v1", "none"],
)
def test_the_lowest_limit_of_all_control_groups_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, limits: dict[str, str]
) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text(groups)
    for name, text in limits.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    monkeypatch.setattr(budget, "OWN_GROUPS", own)
    monkeypatch.setattr(budget, "CONTROL_GROUPS", root)
    assert machine_memory() == 70
