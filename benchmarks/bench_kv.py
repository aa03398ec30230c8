"""How fast KV blocks move between the device and pinned host memory, one method beside another.

    python benchmarks/bench_kv.py --device host --json kv.json --plot kv.png

Blocks of each size, in shuffled order on both sides, by each method in turn: `each`, one driver
call for every block; `batch`, one for many (CUDA 12.8); on a GPU also `kernel`, gpupool's Triton
kernels, and `vllm`, its swap_blocks_batch, if it is installed. `raw` is one copy of as many bytes,
the most that any can reach. Gigabytes (10^9 bytes) per second from being told the blocks until all
has arrived, medians of the runs; in each run every method takes its turn. A case whose bytes differ
afterwards ends the benchmark.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from figures_file import keep

from gpupool.kv.bench import DIRECTIONS, Bench, open_bench
from gpupool.kv.blocks import Blocks, Words

KIB = 1 << 10
MIB = 1 << 20


class VllmMover:
    """vLLM's swap_blocks_batch, which takes addresses as gpupool's ways take block ids."""

    def __init__(self, bench: Bench, block_bytes: int) -> None:
        """Move blocks of that size."""
        import torch
        from vllm import _custom_ops

        self.row_bytes = block_bytes
        self._base_address = bench.address
        self._swap = _custom_ops.swap_blocks_batch
        self._torch = torch
        # The stream that torch has by default is CUDA's oldest kind, which takes no batches.
        self._stream = torch.cuda.Stream(f"cuda:{bench.driver.ordinal}")

    def to_host(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: each block to the row at its address."""
        self._move(self._addresses(blocks), rows.astype(np.int64))

    def to_device(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: the row at each address to its block."""
        self._move(rows.astype(np.int64), self._addresses(blocks))

    def mark(self) -> Any:
        """Nobody asks for one here."""
        raise NotImplementedError

    @property
    def stream(self) -> int:
        """Nor for it."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        self._stream.synchronize()

    def _addresses(self, blocks: Blocks) -> Blocks:
        return self._base_address + blocks * self.row_bytes

    def _move(self, source: Blocks, target: Blocks) -> None:
        on_source, on_target = (self._torch.from_numpy(a) for a in (source, target))
        sizes = self._torch.full_like(on_source, self.row_bytes)
        with self._torch.cuda.stream(self._stream):
            self._swap(on_source, on_target, sizes)


def measure(
    device: str, sizes_kib: list[int], counts: list[int], limit_mib: int, runs: int
) -> Iterator[dict[str, Any]]:
    """Every size with every count whose bytes are within the limit; as far as it is, each time."""
    asked = [(size * KIB, count) for size in sizes_kib for count in counts]
    cases = [(size, count) for size, count in asked if size * count <= limit_mib * MIB]
    if not cases:
        raise click.UsageError("no case is within the limit: raise --limit-mib")
    left_out = [
        {"block_bytes": size, "count": count} for size, count in asked if (size, count) not in cases
    ]
    found: dict[str, Any] = {"device": device, "runs": runs, "limit_mib": limit_mib}
    found |= {"left_out": left_out, "cases": len(cases), "results": []}
    with open_bench(device, max(size * count for size, count in cases)) as bench:
        for number, (block_bytes, count) in enumerate(cases, start=1):
            say(f"case {number} of {len(cases)}: {count} blocks of {block_bytes // KIB} KiB")
            found["results"] += _case(bench, device, block_bytes, count, runs)
            yield found


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


def _case(
    bench: Bench, device: str, block_bytes: int, count: int, runs: int
) -> list[dict[str, Any]]:
    ways = bench.ways(block_bytes)
    if device.startswith("cuda") and importlib.util.find_spec("vllm") is not None:
        ways["vllm"] = VllmMover(bench, block_bytes)
    move = bench.move(block_bytes, count)
    bench.check(ways, move)
    whole_bytes = block_bytes * count
    raw, one = bench.whole(whole_bytes)
    found = []
    for direction in DIRECTIONS:
        taken_s: dict[str, list[float]] = {"raw": []} | {name: [] for name in ways}
        for run in range(runs + 1):  # the first warms up
            for name, seconds in taken_s.items():
                took_s = (
                    one.seconds(raw, direction)
                    if name == "raw"
                    else move.seconds(ways[name], direction)
                )
                if run > 0:
                    seconds.append(took_s)
        raw_s = statistics.median(taken_s["raw"])
        for name, seconds in taken_s.items():
            median_s = statistics.median(seconds)
            found.append(
                {
                    "direction": direction,
                    "method": name,
                    "block_bytes": block_bytes,
                    "count": count,
                    "gbps": whole_bytes / median_s / 1e9,
                    "of_raw": raw_s / median_s,
                }
            )
    return found


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
    default=None,
    type=click.IntRange(1),
    help="Cases of more bytes are left out; memory is twice that on each side.  [default: 512 on "
    "the host device, 12800 on a GPU, which is all of them]",
)
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
@click.option("--plot", "plot_path", help="Draw them into a PNG or SVG file; needs matplotlib.")
def main(
    device: str,
    sizes_kib: tuple[int, ...],
    counts: tuple[int, ...],
    limit_mib: int | None,
    runs: int,
    json_path: str | None,
    plot_path: str | None,
) -> None:
    """Run and report."""
    if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'gpupool[bench]'")
    if limit_mib is None:
        limit_mib = 512 if device == "host" else 12_800
    found: dict[str, Any] = {}
    for found in measure(device, sorted(sizes_kib), sorted(counts), limit_mib, runs):
        keep(json_path, found, complete=False)
    found = keep(json_path, found, complete=True)
    if json_path == "-":
        print(json.dumps(found, indent=1))
    if json_path != "-":
        print(f"{'direction':10} {'KiB':>5} {'blocks':>7} {'method':>7} {'GB/s':>8} {'of raw':>7}")
        for row in found["results"]:
            print(
                f"{row['direction']:10} {row['block_bytes'] // KIB:5} {row['count']:7} "
                f"{row['method']:>7} {row['gbps']:8.2f} {row['of_raw']:7.2f}"
            )
        if found["left_out"]:
            print(f"{len(found['left_out'])} cases of more than {limit_mib} MiB were left out")
    if plot_path is not None:
        plot(found, plot_path)


if __name__ == "__main__":
    main()
