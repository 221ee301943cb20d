"""Tiles cover every row of every expert once, and the choice of tiles does what it promises."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("MOE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read when triton is imported, whose own functions are kernels too.
    os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl  # noqa: E402

from moe_kernels.backends.triton import tiles  # noqa: E402
from moe_kernels.backends.triton.platform import Device  # noqa: E402
from moe_kernels.backends.triton.schedule import locate, row_blocks  # noqa: E402

BLOCK_ROWS, GROUP_ROWS = 4, 2
DEVICES = {
    "sm_80": Device(80, 108, 166912, False),
    "sm_86": Device(86, 84, 101376, False),
    "sm_90": Device(90, 132, 232448, False),
    "sm_100": Device(100, 148, 232448, False),
    "amd": Device(0, 304, 65536, True),
}


@triton.jit
def _tiles_kernel(
    offsets,
    seen,
    E,
    N,
    column_blocks,
    E_PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    TAIL: tl.constexpr,
):
    ends, blocks = row_blocks(offsets, E, N, E_PAD, BLOCK_ROWS, TAIL)
    for tile in tl.range(tl.program_id(0), blocks * column_blocks, tl.num_programs(0)):
        expert, row, end, column = locate(tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS, GROUP_ROWS, TAIL)
        tl.store(seen + tile * 4, expert)
        tl.store(seen + tile * 4 + 1, row)
        tl.store(seen + tile * 4 + 2, end)
        tl.store(seen + tile * 4 + 3, column)


@pytest.mark.parametrize("tail", [False, True], ids=["owned", "tail"])
@pytest.mark.parametrize("counts", [[5, 0, 1, 17], [0, 0, 0, 9], [0, 0], [4], [0, 8, 0]], ids=str)
def test_every_row_of_every_expert_once(counts, tail):
    column_blocks, N = 3, sum(counts) + 6
    offsets = torch.tensor([0, *counts], device=DEVICE).cumsum(0).int()
    E = len(counts)
    starts = offsets.tolist()
    groups = [(e, starts[e], starts[e + 1]) for e in range(E)] + ([(E, starts[E], N)] if tail else [])
    want = {
        (e, row, end, column)
        for e, start, end in groups
        for row in range(start, end, BLOCK_ROWS)
        for column in range(column_blocks)
    }
    seen = torch.full((len(want) + 1, 4), -1, dtype=torch.int32, device=DEVICE)
    _tiles_kernel[(2,)](offsets, seen, E, N, column_blocks, 8, BLOCK_ROWS, GROUP_ROWS, tail)
    got = [tuple(tile) for tile in seen.tolist()]
    assert got[-1] == (-1, -1, -1, -1), "more tiles than there are"
    assert set(got[:-1]) == want
    assert [tile[0] for tile in got[:-1]] == sorted(tile[0] for tile in got[:-1]), "an expert's tiles lie together"


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit(device, itemsize):
    for rows in (1, 64, 1000, 10000, 1000000):
        tile = tiles.rows_tile(device, itemsize, rows, 64)
        assert tile.stages * (tile.rows + tile.columns) * tile.k * itemsize <= device.shared_bytes
        assert tiles.rows_tile(device, itemsize, rows, 64, batch_invariant=True) == tiles.rows_tile(
            device, itemsize, 1, 1, batch_invariant=True
        ), "the tile of an invariant product must not depend on the rows"


def test_a_grid_is_never_larger_than_the_tiles():
    device = DEVICES["sm_90"]
    tile = tiles.rows_tile(device, 2, 8, 64)
    assert tiles.programs(device, tile, 8, 64, 1) == 9
    assert tiles.programs(device, tile, 100000, 64, 16) == device.processors * tile.occupancy
