"""The choice of device."""

from __future__ import annotations

import pytest
import torch

from specmoe.training import device


@pytest.fixture
def usable(monkeypatch):
    """Returns a function that declares which devices can be used."""

    def declare(*kinds):
        reasons = {kind: None if kind in kinds else "none here" for kind in ("cuda", "mps", "directml", "cpu")}
        monkeypatch.setattr(device, "usable_devices", lambda: reasons)

    return declare


def test_auto_takes_the_first_usable_device(usable):
    usable("mps", "directml", "cpu")
    assert device.choose_device("auto") == "mps"
    usable("cpu")
    assert device.choose_device("auto") == "cpu"


def test_a_device_that_is_not_there_is_refused_with_its_reason(usable):
    usable("directml", "cpu")
    with pytest.raises(ValueError, match="device: cuda: none here; usable here: directml, cpu"):
        device.choose_device("cuda")


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="device: expected one of auto, cuda, mps, directml, cpu, got 'tpu'"):
        device.choose_device("tpu")


def test_the_cpu_can_always_be_used():
    reasons = device.usable_devices()
    assert list(reasons) == ["cuda", "mps", "directml", "cpu"]
    assert device.choose_device("cpu") == "cpu"
    assert device.torch_device("cpu") == torch.device("cpu")
    assert all(reason is None or len(reason) > 10 for reason in reasons.values())
