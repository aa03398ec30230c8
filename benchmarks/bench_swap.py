"""How long a swap takes beside a plain copy of as many bytes, in one run.

    python benchmarks/bench_swap.py --device host --mib 256 --json -

Keys: swap_in_ms, map_ms, copy_ms (medians), swap_out_clean_ms, clean_swap_out_bytes, memcpy_gbps
(one thread, between two warm buffers), copy_gbps and swap_in_gbps of the swap-in.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

import gpupool

MIB = 1 << 20


def measure(device: str, size_bytes: int, page_bytes: int, runs: int) -> dict[str, Any]:
    """Swap one region of weights in and out ``runs`` times; medians of all but the first."""
    pool = gpupool.Pool(device=device, budget_bytes=size_bytes + page_bytes, page_bytes=page_bytes)
    model = pool.model("bench")
    region = model.region("weights", size_bytes)
    image = torch.frombuffer(region.image(), dtype=torch.uint8)
    image.random_(generator=torch.Generator().manual_seed(1))
    region.adopt_image()
    ins, outs = [], []
    for _ in range(runs + 1):
        with model.resident():
            pass
        model.swap_out()
        assert model.last_swap_in is not None
        assert model.last_swap_out is not None
        ins.append(model.last_swap_in)
        outs.append(model.last_swap_out)
    pool.close()
    ins, outs = ins[1:], outs[1:]
    memcpy_s = _memcpy_s(image, runs)
    swap_in_s = statistics.median(report.total_s for report in ins)
    copy_s = statistics.median(report.copy_s for report in ins)
    return {
        "device": device,
        "bytes": size_bytes,
        "page_bytes": page_bytes,
        "runs": runs,
        "swap_in_ms": 1e3 * swap_in_s,
        "map_ms": 1e3 * statistics.median(report.map_s for report in ins),
        "copy_ms": 1e3 * copy_s,
        "swap_out_clean_ms": 1e3 * statistics.median(report.total_s for report in outs),
        "clean_swap_out_bytes": max(report.copied_bytes for report in outs),
        "memcpy_gbps": size_bytes / memcpy_s / 1e9,
        "copy_gbps": size_bytes / copy_s / 1e9,
        "swap_in_gbps": size_bytes / swap_in_s / 1e9,
    }


def _memcpy_s(source: torch.Tensor, runs: int) -> float:
    """Median of copying ``source`` to a buffer that is mapped already, on one thread."""
    torch.set_num_threads(1)
    target = torch.empty_like(source)
    target.copy_(source)
    taken = []
    for _ in range(runs):
        begun_s = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - begun_s)
    return statistics.median(taken)


@click.command(help=__doc__)
@click.option("--device", required=True, help="host, cuda or cuda:<ordinal>.")
@click.option("--mib", default=256, show_default=True, type=click.IntRange(1))
@click.option("--page-mib", default=2, show_default=True, type=click.IntRange(1))
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
def main(device: str, mib: int, page_mib: int, runs: int, json_path: str | None) -> None:
    """Run and report."""
    found = measure(device, mib * MIB, page_mib * MIB, runs)
    if json_path == "-":
        json.dump(found, sys.stdout, indent=2)
        print()
    elif json_path is not None:
        Path(json_path).write_text(json.dumps(found, indent=2) + "\n")
    else:
        for key, value in found.items():
            print(f"{key:22} {value:.2f}" if isinstance(value, float) else f"{key:22} {value}")


if __name__ == "__main__":
    main()
