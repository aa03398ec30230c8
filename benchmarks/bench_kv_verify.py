"""What it costs to verify KV blocks: saves and restores with digests beside those without.

    python benchmarks/bench_kv_verify.py --device host --json verify.json

Blocks with a piece for each layer, of each size in turn, are saved and brought back over memory
that stays, with `verify` off and always, in turn within each round. Milliseconds from the call
until all has arrived, and been held against its digests, medians of the rounds; a ratio is of two
such medians.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from gpupool import Pool
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.paged import PagedKv

KIB = 1 << 10
MIB = 1 << 20
PAGE_BYTES = 2 * MIB
LAYERS = 32


class Kept:
    """A model with a KV cache of its own."""

    def __init__(self, pool: Pool, verify: str, layout: BlockLayout, region_bytes: int) -> None:
        """Out, and with nothing written."""
        self.model = pool.model(verify, verify=verify)
        self.kv = PagedKv(self.model, layout, region_bytes=region_bytes, dtype="int8")
        self._blocks = np.arange(layout.blocks)
        self.save_s: list[float] = []
        self.restore_s: list[float] = []

    def round(self) -> None:
        """Write all blocks, save them, and bring them back."""
        cache = self.kv.cache
        with self.model.resident():
            self.kv.write(self._blocks)
            with _timed(self.save_s):
                cache.save()
            cache.lost()  # as when the memory goes, which takes no part here
            with _timed(self.restore_s):
                cache.restore()
                cache.require(self._blocks)
        self.model.swap_out()


@contextlib.contextmanager
def _timed(taken_s: list[float]) -> Iterator[None]:
    begun_s = time.perf_counter()
    yield
    taken_s.append(time.perf_counter() - begun_s)


def measure(device: str, mib: int, piece_kib: int, rounds: int) -> dict[str, Any]:
    """Of so many bytes in pieces of that size."""
    size = piece_kib * KIB
    blocks = max(1, mib * MIB // (size * LAYERS))
    pieces = [(layer * blocks * size, size, size) for layer in range(LAYERS)]
    layout = BlockLayout.of(pieces, blocks)
    region_bytes = -(-layout.extent_bytes // PAGE_BYTES) * PAGE_BYTES
    with contextlib.closing(
        Pool(device=device, budget_bytes=region_bytes, page_bytes=PAGE_BYTES)
    ) as pool:
        kept = {verify: Kept(pool, verify, layout, region_bytes) for verify in ("off", "always")}
        for number in range(rounds + 1):  # in the first memory is pinned
            for one in kept.values():
                one.round()
                if number == 0:
                    one.save_s.clear()
                    one.restore_s.clear()
        found: dict[str, Any] = {"piece_kib": piece_kib, "mib": layout.row_bytes * blocks / MIB}
        for what in ("save", "restore"):
            off_s, always_s = (
                statistics.median(getattr(kept[verify], f"{what}_s")) for verify in kept
            )
            found[f"{what}_off_ms"] = round(1e3 * off_s, 2)
            found[f"{what}_always_ms"] = round(1e3 * always_s, 2)
            found[f"{what}_ratio"] = round(always_s / off_s, 2)
        return found


@click.command(help=__doc__)
@click.option("--device", default="host", show_default=True)
@click.option("--mib", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--piece-kib", type=click.IntRange(min=1), multiple=True, default=(4, 32))
@click.option("--rounds", type=click.IntRange(min=1), default=11, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, allow_dash=True))
def main(
    device: str, mib: int, piece_kib: tuple[int, ...], rounds: int, json_path: str | None
) -> None:
    """Measure and print."""
    results = [measure(device, mib, size, rounds) for size in piece_kib]
    whole = {"device": device, "rounds": rounds, "layers": LAYERS, "results": results}
    if json_path == "-":
        json.dump(whole, sys.stdout)
        return
    if json_path is not None:
        Path(json_path).write_text(json.dumps(whole, indent=1))
    for found in results:
        click.echo("  ".join(f"{key} {figure}" for key, figure in found.items()))


if __name__ == "__main__":
    main()
