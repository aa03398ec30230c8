"""Measures how long each way of moving blocks takes on a device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from gpupool.errors import UsageError
from gpupool.kv.bench import DIRECTIONS, Bench, open_bench
from gpupool.kv.move_table import Figure, MoveTable
from gpupool.kv.planned_mover import device_name
from gpupool.pool import MIB

KIB = 1 << 10
PIECE_BYTES = (4 * KIB, 16 * KIB, 24 * KIB, 28 * KIB, 32 * KIB, 64 * KIB, 256 * KIB)
PIECES = (16, 256, 4096, 32_768)


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

    Medians of ``runs``; what would be more than ``limit_bytes`` is left out. Takes twice that of
    device and of pinned host memory. ``progress`` hears how many of the cases are done. Raises
    UsageError if none is within the limit, GpupoolError if a way moves wrong bytes, and what
    opening a device and moving on it raises.
    """
    cases = [(size, n) for size in piece_bytes for n in pieces if size * n <= limit_bytes]
    if not cases:
        raise UsageError(f"no move is within {limit_bytes} bytes: raise the limit")
    figures: list[Figure] = []
    with open_bench(device, max(size * n for size, n in cases)) as bench:
        name = device_name(bench.driver)
        for done, (size, count) in enumerate(cases):
            progress(done, len(cases))
            figures += _figures(bench, size, count, runs)
        progress(len(cases), len(cases))
    return MoveTable(name, figures)


def _figures(bench: Bench, size: int, count: int, runs: int) -> Iterator[Figure]:
    ways = bench.ways(size)
    move = bench.move(size, count)
    bench.check(ways, move)  # also warms up
    for direction in DIRECTIONS:
        taken_s: dict[str, list[float]] = {method: [] for method in ways}
        for _ in range(runs):
            for method, way in ways.items():  # in turn, so that noise falls on all alike
                taken_s[method].append(move.seconds(way, direction))
        for method, seconds in taken_s.items():
            yield Figure(direction, method, size, count, statistics.median(seconds))


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
