"""What the README says: its example runs, and its loop gives what the layer gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_and_its_equivalent():
    layer_code, loop_code = re.findall(r"```python\n(.*?)```", README, re.S)[:2]
    assert len([line for line in layer_code.splitlines() if line.strip()]) <= 12
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(layer_code, names)
    assert names["router"].counts.sum() == 512 * 2
    mine = names["out"]
    exec(loop_code, names)
    torch.testing.assert_close(names["out"], mine.reshape(-1, 512), rtol=1e-4, atol=1e-5)


def test_the_quantized_example(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "save_quantized" in block)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert torch.equal(names["other"](names["x"]), names["model"](names["x"]))
    assert names["x"].grad is not None and names["other"][0].gate.weight.grad is not None


def test_the_two_commands_are_those_of_ci():
    commands = re.search(r"```\n(pip install.*?)```", README, re.S).group(1).splitlines()
    assert commands == [
        "pip install -e . -c constraints.txt && specmoe demo",
        'pip install -e ".[test]" -c constraints.txt && pytest -n 2',
    ]
