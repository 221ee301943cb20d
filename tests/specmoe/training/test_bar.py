"""The loss that the `cpu` preset is there for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specmoe.training import preset, train


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(os.environ.get("MOE_DATA_DIR", "")) / "tinyshakespeare.txt").is_file(),
    reason="MOE_DATA_DIR has no tinyshakespeare.txt",
)
def test_the_cpu_preset_reaches_its_loss_on_tiny_shakespeare(tmp_path):
    result = train(preset("cpu", dataset="tinyshakespeare", output_dir=tmp_path / "run", device="cpu"))
    assert result.validation_loss <= 1.60
