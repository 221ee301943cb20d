"""The record of the build: read, missing or damaged, it always gives a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_kernels import build_record


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps({"cuda": {"built": False, "reason": "nvcc was not found"}}), "nvcc was not found"),
        ("{ not json", "there is no record of its build"),
        (json.dumps({"cuda": None}), "there is no record of its build"),
        (None, "there is no record of its build"),
    ],
    ids=["recorded", "corrupt", "incomplete", "absent"],
)
def test_reason(content: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "_build.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(build_record, "_PATH", path)
    assert build_record.reason_not_built("cuda").startswith(expected)
