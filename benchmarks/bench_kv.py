"""How fast KV blocks move between the device and pinned host memory, one method beside another.

    python benchmarks/bench_kv.py --device host --json kv.json --plot kv.png

Blocks of each size, in shuffled order on both sides, by each method in turn: `each`, one driver
call for every block; `batch`, one for many (CUDA 12.8); on a GPU also `kernel`, gpupool's Triton
kernels, and `vllm`, its swap_blocks_batch, if it is installed. `raw` is one copy of as many bytes,
the most that any can reach. Gigabytes (10^9 bytes) per second from the first call until all has
arrived, medians of the runs; in each run every method takes its turn. A case whose bytes differ
afterwards ends the benchmark.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import gpupool
from gpupool._core import BlockCopier
from gpupool.errors import DriverError

KIB = 1 << 10
MIB = 1 << 20
PAGE_BYTES = 2 * MIB
NOT_SUPPORTED = 801
DIRECTIONS = ("to_host", "to_device")
Move = Callable[[str, np.ndarray, np.ndarray], None]  # direction, device and host addresses


@dataclass(frozen=True)
class Place:
    """Memory on both sides, for blocks of any size."""

    device_address: int
    host_address: int
    bytes: int
    copier: BlockCopier

    def raw(self, direction: str, size_bytes: int) -> None:
        """One copy."""
        self.spans(direction, [self.device_address], [self.host_address], [size_bytes], "each")

    def spans(self, direction: str, device: Any, host: Any, sizes: Any, method: str) -> None:
        """As many copies as there are sizes."""
        move = self.copier.to_host if direction == "to_host" else self.copier.to_device
        move(device, host, sizes, method=method)
        self.copier.synchronize()


def methods(place: Place, device: str, block_bytes: int) -> dict[str, Move]:
    """Every method that this machine has."""

    def by_driver(method: str) -> Move:
        def move(direction: str, ours: np.ndarray, theirs: np.ndarray) -> None:
            sizes = np.full(len(ours), block_bytes, np.uint64)
            place.spans(direction, ours.data, theirs.data, sizes.data, method)

        return move

    found = {"each": by_driver("each"), "batch": by_driver("batch")}
    if device.startswith("cuda"):
        found["kernel"] = _by_kernel(place, device, block_bytes)
        if importlib.util.find_spec("vllm") is not None:
            found["vllm"] = _by_vllm(block_bytes)
    return found


def _by_kernel(place: Place, device: str, block_bytes: int) -> Move:
    import torch

    from gpupool.kernels.layout import BlockLayout
    from gpupool.kernels.memory import RowsAt
    from gpupool.kernels.move import BlockMover

    layout = BlockLayout.of([(0, block_bytes, block_bytes)], place.bytes // block_bytes)
    mover = BlockMover(layout, (place.device_address, place.bytes), device=device)

    def move(direction: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        ids = (ours - np.uint64(place.device_address)) // np.uint64(block_bytes)
        launch = mover.gather if direction == "to_host" else mover.scatter
        rows = RowsAt(torch.from_numpy(theirs.astype(np.int64)))
        launch(torch.from_numpy(ids.astype(np.int64)), rows)
        torch.cuda.synchronize()

    return move


def _by_vllm(block_bytes: int) -> Move:
    import torch
    from vllm import _custom_ops as ops

    def move(direction: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        on_device, on_host = (torch.from_numpy(a.astype(np.int64)) for a in (ours, theirs))
        source, target = (on_device, on_host) if direction == "to_host" else (on_host, on_device)
        ops.swap_blocks_batch(source, target, torch.full_like(source, block_bytes))
        torch.cuda.synchronize()

    return move


def measure(
    device: str, sizes_kib: list[int], counts: list[int], limit_mib: int, runs: int
) -> dict[str, Any]:
    """Every size with every count whose bytes are within the limit."""
    most = max(
        (size * KIB * count for size in sizes_kib for count in counts
         if size * KIB * count <= limit_mib * MIB),
        default=0,
    )  # fmt: skip
    if most == 0:
        raise click.UsageError("no case is within the limit: raise --limit-mib")
    room_bytes = -(-2 * most // PAGE_BYTES) * PAGE_BYTES  # so that blocks are not all neighbours
    pool = gpupool.Pool(device=device, budget_bytes=room_bytes, page_bytes=PAGE_BYTES)
    model = pool.model("bench")
    region = model.region("workspace", room_bytes)
    pinned = pool.slabs([room_bytes], slab_bytes=room_bytes, slabs_max=1, pinned=True)
    handle = pinned.allocate(room_bytes)
    results = []
    with model.resident():
        place = Place(
            region.address, pinned.address_of(handle), room_bytes, BlockCopier(pool.driver)
        )
        for size_kib in sizes_kib:
            offered = methods(place, device, size_kib * KIB)
            for count in counts:
                if size_kib * KIB * count <= limit_mib * MIB:
                    results += _case(place, offered, size_kib * KIB, count, runs)
        del place
    pinned.free(handle)
    pool.close()
    return {"device": device, "runs": runs, "results": results}


def _case(
    place: Place, offered: dict[str, Move], block_bytes: int, count: int, runs: int
) -> list[dict[str, Any]]:
    generator = np.random.default_rng(block_bytes * 65537 + count)
    slots = place.bytes // block_bytes
    ours, theirs = (
        np.uint64(base)
        + generator.choice(slots, count, replace=False).astype(np.uint64) * np.uint64(block_bytes)
        for base in (place.device_address, place.host_address)
    )
    found = []
    for direction in DIRECTIONS:
        taken_s: dict[str, list[float]] = {"raw": []} | {name: [] for name in offered}
        for run in range(runs + 1):  # the first warms up
            for name in list(taken_s):
                begun_s = time.perf_counter()
                try:
                    if name == "raw":
                        place.raw(direction, block_bytes * count)
                    else:
                        offered[name](direction, ours, theirs)
                except DriverError as error:
                    if error.status != NOT_SUPPORTED:
                        raise
                    del taken_s[name]  # this driver has no batches
                    continue
                if run > 0:
                    taken_s[name].append(time.perf_counter() - begun_s)
        for name, seconds in taken_s.items():
            if name != "raw":
                _check(place, offered[name], ours, theirs, block_bytes)
            found.append(
                {
                    "direction": direction,
                    "method": name,
                    "block_bytes": block_bytes,
                    "count": count,
                    "gbps": block_bytes * count / statistics.median(seconds) / 1e9,
                    "of_raw": statistics.median(taken_s["raw"]) / statistics.median(seconds),
                }
            )
    return found


def _check(
    place: Place, move: Move, ours: np.ndarray, theirs: np.ndarray, block_bytes: int
) -> None:
    """What goes to the device and comes back in another order is what it was."""
    import ctypes

    host = np.frombuffer((ctypes.c_char * place.bytes).from_address(place.host_address), np.uint8)
    rows = [int(a) - place.host_address for a in theirs[:8]]
    stamp = np.random.default_rng(1).integers(0, 256, (len(rows), block_bytes), np.uint8)
    for row, content in zip(rows, stamp, strict=True):
        host[row : row + block_bytes] = content
    move("to_device", ours[: len(rows)], theirs[: len(rows)])
    move("to_host", ours[: len(rows)][::-1].copy(), theirs[: len(rows)])
    for row, content in zip(rows, stamp[::-1], strict=True):
        if not np.array_equal(host[row : row + block_bytes], content):
            raise SystemExit("blocks arrived with other bytes than they left with")


def plot(found: dict[str, Any], path: str) -> None:
    """Rates over the size of a block, a line for each method, at the largest count of each size."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        lines: dict[str, dict[int, tuple[int, float]]] = {}
        for row in found["results"]:
            if row["direction"] == direction:
                best = lines.setdefault(row["method"], {})
                best[row["block_bytes"]] = max(
                    best.get(row["block_bytes"], (0, 0.0)), (row["count"], row["gbps"])
                )
        for method, best in lines.items():
            sizes = sorted(best)
            style = "k--" if method == "raw" else "o-"
            axis.plot(sizes, [best[size][1] for size in sizes], style, label=method)
        axis.set_xscale("log", base=2)
        axis.set_title(f"{direction.replace('_', ' ')} (device: {found['device']})")
        axis.set_xlabel("bytes of a block")
    axes[0].set_ylabel("GB/s")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


@click.command(help=__doc__)
@click.option("--device", required=True, help="host, cuda or cuda:<ordinal>.")
@click.option(
    "--kib",
    "sizes_kib",
    multiple=True,
    type=click.IntRange(1),
    default=(4, 8, 16, 24, 28, 32, 64, 128, 256),
    show_default=True,
    help="Sizes of a block.",
)
@click.option(
    "--count",
    "counts",
    multiple=True,
    type=click.IntRange(1),
    default=(16, 256, 4096, 50_000),
    show_default=True,
    help="How many blocks move at once.",
)
@click.option(
    "--limit-mib",
    default=512,
    show_default=True,
    type=click.IntRange(1),
    help="Cases of more bytes are left out; memory is twice that on each side.",
)
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
@click.option("--plot", "plot_path", help="Draw them into a PNG or SVG file; needs matplotlib.")
def main(
    device: str,
    sizes_kib: tuple[int, ...],
    counts: tuple[int, ...],
    limit_mib: int,
    runs: int,
    json_path: str | None,
    plot_path: str | None,
) -> None:
    """Run and report."""
    if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'gpupool[bench]'")
    found = measure(device, sorted(sizes_kib), sorted(counts), limit_mib, runs)
    if json_path == "-":
        json.dump(found, sys.stdout, indent=2)
        print()
    elif json_path is not None:
        Path(json_path).write_text(json.dumps(found, indent=2) + "\n")
    if json_path != "-":
        print(f"{'direction':10} {'KiB':>5} {'blocks':>7} {'method':>7} {'GB/s':>8} {'of raw':>7}")
        for row in found["results"]:
            print(
                f"{row['direction']:10} {row['block_bytes'] // KIB:5} {row['count']:7} "
                f"{row['method']:>7} {row['gbps']:8.2f} {row['of_raw']:7.2f}"
            )
    if plot_path is not None:
        plot(found, plot_path)


if __name__ == "__main__":
    main()
