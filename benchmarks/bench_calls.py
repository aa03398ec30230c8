"""What calls from Python cost beside an empty Python function, all in one run.

    python benchmarks/bench_calls.py --json -

For each call: nanoseconds, as the median of the rounds, and how many empty Python calls that is.
In each round every call takes its turn. On the host device.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import gpupool
from gpupool._core import FaultPlan, Page, digest

PAGE_BYTES = 2 << 20


def empty() -> None:
    """Nothing, called."""


def measure(rounds: int, loops: int) -> dict[str, Any]:
    """Every call ``rounds`` times ``loops`` times; medians in nanoseconds and as ratios."""
    pool = gpupool.Pool(device="host", budget_bytes=2 * PAGE_BYTES, page_bytes=PAGE_BYTES)
    model = pool.model("bench")
    region = model.region("kv_cache", PAGE_BYTES)
    plan = FaultPlan()
    driver = pool.driver
    gate = model.gate
    pages = gpupool._core.PagePool(driver, PAGE_BYTES, PAGE_BYTES)
    page = pages.page(pages.acquire(1, 1)[0])
    fd = page.export_fd()
    runs = [(0, 4096)]
    many_runs = [(8192 * i, 4096) for i in range(100)]
    page_64_bytes = bytes(64)

    def step() -> None:
        gate.open_step()
        gate.close_step()

    def resident() -> None:
        with model.resident():
            pass

    def export_and_close() -> None:
        os.close(page.export_fd())

    # How many of them in a loop, as a part of `loops`: calls into the system take longer.
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "empty_python": (empty, 1),
        "empty_pybind": (plan.disarm, 1),
        "property": (lambda: region.bytes, 1),
        "saved_bytes": (lambda: region.saved_bytes, 1),
        "digest_64_bytes": (lambda: digest(page_64_bytes), 1),
        "mark_written_1_run": (lambda: region.mark_written(runs), 1),
        "mark_written_100_runs": (lambda: region.mark_written(many_runs), 20),
        "gate_step": (step, 1),
        "model_resident": (resident, 5),
        "page_export": (export_and_close, 20),
        "page_import": (lambda: Page.import_fd(driver, fd, PAGE_BYTES), 20),
    }
    taken_ns: dict[str, list[float]] = {name: [] for name in calls}
    with model.resident():
        for turn in range(rounds + 1):
            for name, (call, part) in calls.items():
                number = max(1, loops // part)
                gc.collect()
                taken_s = timeit.timeit(call, number=number)
                if turn > 0:  # the first warms up
                    taken_ns[name].append(1e9 * taken_s / number)
    os.close(fd)
    pool.close()
    median_ns = {name: statistics.median(values) for name, values in taken_ns.items()}
    return {
        "rounds": rounds,
        "loops": loops,
        "calls_ns": median_ns,
        "empty_python_calls": {
            name: value / median_ns["empty_python"] for name, value in median_ns.items()
        },
    }


@click.command(help=__doc__)
@click.option("--rounds", default=11, show_default=True, type=click.IntRange(1))
@click.option("--loops", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
def main(rounds: int, loops: int, json_path: str | None) -> None:
    """Run and report."""
    found = measure(rounds, loops)
    if json_path == "-":
        json.dump(found, sys.stdout, indent=2)
        print()
    elif json_path is not None:
        Path(json_path).write_text(json.dumps(found, indent=2) + "\n")
    else:
        print(f"{'':24}{'ns':>10}{'of empty':>10}")
        for name, value in found["calls_ns"].items():
            print(f"{name:24}{value:10.0f}{found['empty_python_calls'][name]:10.1f}")


if __name__ == "__main__":
    main()
