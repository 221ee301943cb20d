"""A small store and a small model to offload."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from specmoe.offload import ExpertStore

LAYERS, EXPERTS = 3, 6


def draw_layers(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[int, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    # 40 * 24 and 24 * 20 floats: no multiple of a page, so that padding is exercised.
    return {n: {"gate_up_proj": draw(EXPERTS, 40, 24), "down_proj": draw(EXPERTS, 24, 20)} for n in range(LAYERS)}


@pytest.fixture
def make_layers() -> Callable[..., dict[int, dict[str, torch.Tensor]]]:
    """Return the function that draws the store's weights: of 3 layers with 6 experts."""
    return draw_layers


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    with ExpertStore.build(draw_layers(), tmp_path / "experts.store", source="a test") as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_lane_is_left() -> Iterator[None]:
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith("specmoe-lane")]
    assert not left, f"threads left behind: {left}"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prompt() -> torch.Tensor:
    """The ids (1, 9) of a prompt."""
    return torch.randint(0, 50, (1, 9), generator=torch.Generator().manual_seed(1))
