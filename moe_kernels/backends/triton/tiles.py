"""Block sizes by device class, size of the numbers and rows per expert: one small table, no file per GPU.

Not yet measured on any GPU: the sizes follow from registers, shared memory and the shapes of the matrix instructions,
and every entry is compiled ahead of time for its target (tests/backends/triton) to see that it fits and spills nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moe_kernels.backends.triton.platform import Device

# One row count that stands for all of them where bits must not depend on the rows.
INVARIANT_ROWS = 64
GROUP_ROWS = 16


@dataclass(frozen=True)
class Tile:
    """What a kernel is compiled with.

    Attributes:
        rows, columns: the block of the result that a program computes at a time.
        k: the step of the sum.
        warps, stages: Triton's num_warps and num_stages.
        occupancy: programs per processor of a persistent grid.
    """

    rows: int
    columns: int
    k: int
    warps: int
    stages: int
    occupancy: int = 1

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


# Device class → (most rows per expert, tile), in 16-bit numbers. Few rows: the weights' bytes are what counts, so the
# steps along k are long and many of them in flight. Many rows: 128×256 on Hopper, two warpgroups with 128 sums a
# thread; smaller ones where a program has fewer registers or less shared memory.
HALF: dict[str, tuple[tuple[int, Tile], ...]] = {
    "interpreter": (
        (16, Tile(16, 32, 32, 4, 2)),
        (1 << 30, Tile(64, 64, 64, 4, 2)),
    ),
    "sm_80": (
        (16, Tile(16, 64, 128, 4, 4, 2)),
        (32, Tile(32, 128, 64, 4, 3, 2)),
        (64, Tile(64, 128, 64, 4, 3, 2)),
        (1 << 30, Tile(128, 128, 32, 8, 4, 1)),
    ),
    "sm_90": (
        (16, Tile(16, 64, 128, 4, 4, 2)),
        (32, Tile(32, 128, 128, 4, 3, 2)),
        (64, Tile(64, 128, 64, 4, 4, 2)),
        (1 << 30, Tile(128, 256, 64, 8, 4, 1)),
    ),
    "sm_100": (
        (16, Tile(16, 64, 128, 4, 4, 2)),
        (32, Tile(32, 128, 128, 4, 3, 2)),
        (64, Tile(64, 128, 64, 4, 4, 2)),
        (1 << 30, Tile(128, 256, 64, 8, 4, 1)),
    ),
    "amd": (
        (16, Tile(16, 64, 64, 4, 2, 2)),
        (64, Tile(64, 64, 64, 4, 2, 2)),
        (1 << 30, Tile(128, 128, 32, 8, 2, 2)),
    ),
}
# Float32 is multiplied without tensor cores: the registers are what limits the tile.
FLOAT32 = ((16, Tile(16, 64, 32, 4, 2, 2)), (1 << 30, Tile(64, 64, 16, 8, 2, 2)))

GRADIENT = {
    "interpreter": Tile(64, 64, 64, 4, 2),
    "sm_80": Tile(128, 128, 32, 8, 4),
    "sm_90": Tile(128, 256, 64, 8, 3),
    "sm_100": Tile(128, 256, 64, 8, 3),
    "amd": Tile(128, 128, 32, 8, 2),
}
FLOAT32_GRADIENT = dict.fromkeys(GRADIENT, Tile(64, 64, 16, 8, 2)) | {"interpreter": GRADIENT["interpreter"]}


def device_class(device: Device) -> str:
    if device.amd:
        return "amd"
    for name in ("sm_100", "sm_90"):
        if device.architecture >= int(name.removeprefix("sm_")):
            return name
    return "sm_80" if device.architecture else "interpreter"


def fit(tile: Tile, itemsize: int, shared_bytes: int) -> Tile:
    """Take stages away until the tile's operands fit the shared memory of a program."""
    stage = (tile.rows + tile.columns) * tile.k * itemsize
    stages = tile.stages
    while stages > 1 and stages * stage > shared_bytes - 2048:
        stages -= 1
    return replace(tile, stages=stages)


def rows_tile(device: Device, itemsize: int, rows: int, E: int, batch_invariant: bool = False) -> Tile:
    """Choose the tile of a product of `rows` rows of `E` experts with their weights.

    In a product with gate and up in one, `columns` counts both.
    """
    kind = device_class(device)
    per_expert = INVARIANT_ROWS if batch_invariant else rows / max(E, 1)
    if itemsize == 4:
        table = HALF[kind] if kind == "interpreter" else FLOAT32
    else:
        table = HALF[kind]
    return fit(next(tile for limit, tile in table if per_expert <= limit), itemsize, device.shared_bytes)


def gradient_tile(device: Device, itemsize: int) -> Tile:
    """Choose the tile of a weight's gradient: `rows` by `columns` of the weight, `k` rows at a time."""
    return fit((FLOAT32_GRADIENT if itemsize == 4 else GRADIENT)[device_class(device)], itemsize, device.shared_bytes)


def activation_gradient_tile(device: Device, itemsize: int, rows: int, E: int) -> Tile:
    """Choose the tile of the product whose epilogue goes back through the activation.

    It holds pre-activation and gradients beside the sums, so that it may have half the sums of another product.
    """
    tile = rows_tile(device, itemsize, rows, E)
    return replace(tile, columns=128, stages=3, occupancy=2) if tile.columns > 128 else tile


def programs(device: Device, tile: Tile, rows: int, groups: int, column_blocks: int) -> int:
    """Return the size of a persistent grid: not more than the device runs at once, nor than there can be tiles."""
    most = (-(-rows // tile.rows) + min(groups, rows)) * column_blocks
    return max(1, min(device.processors * tile.occupancy, most))
