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
# The way of `decode` compares every slot with every other, and reads a weight again for every tile of rows.
DECODE_TOKENS, DECODE_SLOTS = 64, 512
# Programs per processor that it aims at.
DECODE_PROGRAMS = 4


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
        (32, Tile(32, 64, 64, 4, 2)),
        (1 << 30, Tile(128, 128, 128, 4, 2)),
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
FLOAT32 = ((16, Tile(16, 64, 32, 4, 2, 2)), (1 << 30, Tile(64, 64, 32, 8, 2, 2)))

# A gradient's rows are loaded through an index that is loaded before: Triton takes two stages for a step of the sum.
GRADIENT = {
    "interpreter": Tile(128, 128, 64, 4, 2),
    "sm_80": Tile(128, 128, 32, 8, 7),
    "sm_90": Tile(128, 256, 64, 8, 7),
    "sm_100": Tile(128, 256, 64, 8, 7),
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


def fit(tile: Tile, itemsize: int, shared_bytes: int, stages_of_step: int = 1) -> Tile:
    """Take stages away until the tile's operands fit the shared memory of a program."""
    step = (tile.rows + tile.columns) * tile.k * itemsize
    stages = tile.stages
    while stages > 1 and -(-stages // stages_of_step) * step > shared_bytes - 2048:
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
    tile = (FLOAT32_GRADIENT if itemsize == 4 else GRADIENT)[device_class(device)]
    return fit(tile, itemsize, device.shared_bytes, stages_of_step=2)


def narrower(tile: Tile, columns: int = 128) -> Tile:
    """Return the tile of a product whose epilogue needs many registers: so many columns, two programs at a time."""
    return replace(tile, columns=columns, stages=min(tile.stages, 3), occupancy=2) if tile.columns > columns else tile


def up_projection_tile(
    device: Device, itemsize: int, rows: int, E: int, simple: bool, batch_invariant: bool = False
) -> Tile:
    """Choose the tile of an up-projection. It is `simple` with gate and up in halves and without a bias."""
    tile = rows_tile(device, itemsize, rows, E, batch_invariant)
    # On sm_100 even the simple epilogue spills 40 bytes with 256 columns.
    return tile if simple and device_class(device) != "sm_100" else narrower(tile)


def activation_gradient_tile(device: Device, itemsize: int, rows: int, E: int, interleaved: bool) -> Tile:
    """Choose the tile of the product whose epilogue goes back through the activation."""
    tile = narrower(rows_tile(device, itemsize, rows, E), 64 if interleaved else 128)
    # With 32 lanes to a warp, as RDNA has, 4 warps spill.
    return replace(tile, warps=8) if device.amd and tile.rows > 16 else tile


def candidates(device: Device, itemsize: int) -> list[Tile]:
    """Return the tiles that `autotune` tries beside the table's."""
    if itemsize == 4:
        return [tile for _, tile in FLOAT32]
    found = [tile for _, tile in HALF[device_class(device)]]
    if not device.amd:
        found += [Tile(128, 128, 64, 4, 3, 2), Tile(128, 128, 64, 8, 3, 2), Tile(128, 128, 32, 4, 4, 2)]
        found += [Tile(64, 256, 64, 4, 3, 1), Tile(64, 128, 64, 4, 3, 3), Tile(128, 256, 64, 8, 3, 1)]
    return [fit(tile, itemsize, device.shared_bytes) for tile in found]


def gradient_candidates(device: Device, itemsize: int) -> list[Tile]:
    """Return the tiles of weights' gradients that `autotune` tries beside the table's."""
    if itemsize == 4 or device.amd:
        return []
    found = [Tile(128, 128, 64, 4, 5), Tile(128, 128, 64, 8, 5), Tile(256, 128, 64, 8, 7), Tile(128, 256, 64, 8, 5)]
    return [fit(tile, itemsize, device.shared_bytes, stages_of_step=2) for tile in found]


def decodes(T: int, K: int) -> bool:
    """Whether so many tokens with K experts each go the way of `decode`."""
    return T <= DECODE_TOKENS and 0 < T * K <= DECODE_SLOTS


def decode_tile(device: Device, itemsize: int, T: int, N: int, candidates: int, columns: int, transposed: bool) -> Tile:
    """Choose the tile of a product with a few rows of each of (up to) `candidates` experts.

    The widest block of columns that still gives each processor several programs; of a transposed weight not so narrow
    that the copies become short.
    """
    if device_class(device) == "interpreter":
        return Tile(16, 64, 64, 4, 2)
    per_expert = N / candidates
    rows = min(16 if per_expert <= 8 else 32 if per_expert <= 20 else 64, max(16, power_of_two(T)))
    narrowest = 128 if transposed else 32
    width = 128
    while width > narrowest and candidates * -(-columns // width) < DECODE_PROGRAMS * device.processors:
        width //= 2
    k = 64 if device.amd or itemsize == 4 or rows > 32 or width > 64 else 128
    # More slots than that are compared by more threads: with 4 warps and 512 slots they take all registers.
    warps = 8 if N > 256 else 2 if width == 32 else 4
    tile = Tile(rows, width, k, warps, 2 if device.amd or itemsize == 4 else 5)
    return fit(tile, itemsize, device.shared_bytes // 2)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << max(0, n - 1).bit_length()


def programs(device: Device, tile: Tile, rows: int, groups: int, column_blocks: int) -> int:
    """Return the size of a persistent grid: not more than the device runs at once, nor than there can be tiles."""
    most = (-(-rows // tile.rows) + min(groups, rows)) * column_blocks
    return max(1, min(device.processors * tile.occupancy, most))
