"""Measures how long each way of moving blocks takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from gpupool.errors import DriverError, UsageError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import Blocks, Words
from gpupool.kv.move_table import Direction, Figure, MoveTable
from gpupool.kv.mover import Mover
from gpupool.kv.planned_mover import device_name, movers
from gpupool.pool import Pool

KIB = 1 << 10
MIB = 1 << 20
PIECE_BYTES = (4 * KIB, 16 * KIB, 24 * KIB, 28 * KIB, 32 * KIB, 64 * KIB, 256 * KIB)
PIECES = (16, 256, 4096)
_PAGE_BYTES = 2 * MIB
_NOT_SUPPORTED = 801  # CUDA before 12.8 has no batches


def measure(
    device: str,
    *,
    piece_bytes: tuple[int, ...] = PIECE_BYTES,
    pieces: tuple[int, ...] = PIECES,
    limit_bytes: int = 256 * MIB,
    runs: int = 5,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> MoveTable:
    """Move so many pieces of each size, all over memory, by every way that the device has.

    Medians of ``runs`` after one that warms up; what would be more than ``limit_bytes`` is left
    out. Takes twice that of device and of pinned host memory. ``progress`` hears how many of the
    cases are done. Raises UsageError if none is within the limit, and what opening a device and
    moving on it raises.
    """
    cases = [(size, n) for size in piece_bytes for n in pieces if size * n <= limit_bytes]
    if not cases:
        raise UsageError(f"no move is within {limit_bytes} bytes: raise the limit")
    room_bytes = -(-2 * max(size * n for size, n in cases) // _PAGE_BYTES) * _PAGE_BYTES
    pool = Pool(device=device, budget_bytes=room_bytes, page_bytes=_PAGE_BYTES)
    try:
        model = pool.model("tune")
        region = model.region("workspace", room_bytes)
        pinned = pool.slabs([room_bytes], slab_bytes=room_bytes, slabs_max=1, pinned=True)
        handle = pinned.allocate(room_bytes)
        figures: list[Figure] = []
        with model.resident():
            for done, (size, count) in enumerate(cases):
                progress(done, len(cases))
                slots = room_bytes // size
                layout = BlockLayout.of([(0, size, size)], blocks=slots)
                shuffled = np.random.default_rng(count)
                blocks = shuffled.choice(slots, count, replace=False).astype(np.int64)
                rows = shuffled.choice(slots, count, replace=False).astype(np.uint64)
                rows = np.uint64(pinned.address_of(handle)) + rows * np.uint64(size)
                ways = movers(pool.driver, layout, region.address, room_bytes)
                for name, way in ways.items():
                    figures += _figures(name, way, size, blocks, rows, runs)
            progress(len(cases), len(cases))
        del ways, way
        pinned.free(handle)
        return MoveTable(device_name(pool.driver), figures)
    finally:
        pool.close()


def _figures(
    method: str, way: Mover, piece_bytes: int, blocks: Blocks, rows: Words, runs: int
) -> Iterator[Figure]:
    try:
        way.to_host(blocks[:1], rows[:1])
    except DriverError as error:
        if error.status != _NOT_SUPPORTED:
            raise
        return
    way.synchronize()
    directions: tuple[Direction, ...] = ("to_host", "to_device")
    for direction in directions:
        move = way.to_host if direction == "to_host" else way.to_device
        taken_s: list[float] = []
        for _ in range(runs + 1):
            begun_s = time.perf_counter()
            move(blocks, rows)
            way.synchronize()
            taken_s.append(time.perf_counter() - begun_s)
        median_s = statistics.median(taken_s[1:])
        yield Figure(direction, method, piece_bytes, len(blocks), median_s)


def describe(table: MoveTable) -> str:
    """A line for each size and count: GB/s of every way, and which is the quickest."""
    lines = [f"{table.device}: GB/s (10^9 bytes), the best way last"]
    cases = sorted({(f.direction, f.piece_bytes, f.pieces) for f in table.figures})
    for direction, size, count in cases:
        rates = [
            f"{method} {size * count / table.seconds(direction, method, size, count) / 1e9:.2f}"
            for method in table.methods(direction)
        ]
        best = table.best(direction, size, count)
        lines.append(f"{direction:9} {size // KIB:4} KiB x {count:5}  {'  '.join(rates)}  {best}")
    return "\n".join(lines)
