"""A timeline of one swap: the weights of one model come in while the other's blocks are saved.

    python benchmarks/trace_swap.py --device host swap.json

Two models share a pool that holds one. Each has weights, which are on the host already, and a paged
KV cache of which half was written. The file is in Chrome's trace format, for
https://ui.perfetto.dev: a process for each model, with what its threads did and what its streams
copied. ``--plot`` draws the same into a PNG or SVG file.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import click
from pool_process import daemon

from gpupool.daemon.client import DaemonSession
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.paged import PagedKv
from gpupool.model import Model
from gpupool.trace import MAX_EVENTS, record

MIB = 1 << 20
PAGE_BYTES = 2 * MIB
BLOCK_BYTES = MIB

Event = dict[str, Any]


class Subject:
    """A model with weights and a paged KV cache."""

    def __init__(self, socket_path: Path, name: str, weights_bytes: int, kv_bytes: int) -> None:
        self.session = DaemonSession(socket_path, name)
        self.model = Model(name, self.session)
        weights = self.model.region("weights", weights_bytes)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(weights.image())), 65, 4096)
        weights.adopt_image()
        self.blocks = kv_bytes // BLOCK_BYTES
        layout = BlockLayout.of([(0, BLOCK_BYTES, BLOCK_BYTES)], blocks=self.blocks)
        self.kv = PagedKv(self.model, layout, region_bytes=kv_bytes, dtype="int8")

    def step(self) -> None:
        """Come in and write half of the blocks."""
        with self.model.resident():
            half = range(0, self.blocks, 2)
            self.kv.require(half)
            self.kv.write(half)


def swap(first: Subject, second: Subject, folder: Path) -> list[Event]:
    """What happened as the second came and the first left."""
    for subject in (second, first, second, first):  # memory that was never touched is slow
        subject.step()
    files = {}
    with contextlib.ExitStack() as traces:
        for subject in (first, second):
            files[subject.model.name] = folder / f"{subject.model.name}.json"
            driver = subject.session.driver
            traces.enter_context(record(driver, files[subject.model.name], MAX_EVENTS))
        coming = threading.Thread(target=second.step, name="step")
        coming.start()
        coming.join()
    events: list[Event] = []
    for number, (name, file) in enumerate(files.items(), 1):
        events.append(
            {"ph": "M", "name": "process_name", "pid": number, "args": {"name": f"model {name}"}}
        )
        for event in json.loads(file.read_text())["traceEvents"]:
            if event.get("name") != "process_name":
                events.append(event | {"pid": number})
    return events


def overlap_s(events: list[Event]) -> float:
    """For how long one model copied to the device while the other copied to the host."""
    runs = {
        kind: [
            (e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == kind and "dur" in e
        ]
        for kind in ("copy_to_device_digest", "copy_batch_to_host", "copy_to_host")
    }
    out = runs["copy_batch_to_host"] + runs["copy_to_host"]
    if not out or not runs["copy_to_device_digest"]:
        return 0.0
    begin, end = min(b for b, _ in out), max(e for _, e in out)
    return (
        sum(max(0.0, min(e, end) - max(b, begin)) for b, e in runs["copy_to_device_digest"]) / 1e6
    )


def plot(events: list[Event], path: Path) -> None:
    """A bar for each event, a row for each thread or stream."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = {
        (e["pid"], e.get("tid")): e["args"]["name"]
        for e in events
        if e.get("name") == "thread_name"
    }
    models = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    shown = [e for e in events if "dur" in e]
    rows = sorted({(e["pid"], e.get("tid")) for e in shown})
    start = min(e["ts"] for e in shown)
    whole_ms = (max(e["ts"] + e["dur"] for e in shown) - start) / 1e3
    kinds = sorted({e["name"].split(" ")[0] for e in shown})
    colours = {kind: pyplot.get_cmap("tab20")(i % 20) for i, kind in enumerate(kinds)}
    figure, axes = pyplot.subplots(figsize=(11, 0.45 * len(rows) + 1.5))
    for event in sorted(shown, key=lambda e: -e["dur"]):
        row = rows.index((event["pid"], event.get("tid")))
        left, width = (event["ts"] - start) / 1e3, event["dur"] / 1e3
        is_span = " " in event["name"]  # and stands out behind the calls within it
        colour = colours[event["name"].split(" ")[0]]
        axes.barh(row, max(width, 0.01), left=left, height=0.7 if is_span else 0.5, color=colour)
        if is_span and width > whole_ms / 20:
            axes.text(left, row - 0.36, event["name"], va="bottom", fontsize=6)
        elif width > whole_ms / 10:
            axes.text(left + width / 2, row, event["name"], ha="center", va="center", fontsize=6)
    labels = [f"{models[pid]}, {threads.get((pid, tid), tid)}" for pid, tid in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


@click.command(help=__doc__)
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--device", required=True, help="host, cuda or cuda:<ordinal>.")
@click.option("--weights-mib", default=256, show_default=True, type=click.IntRange(4))
@click.option("--kv-mib", default=128, show_default=True, type=click.IntRange(4))
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Needs matplotlib.")
def main(output: Path, device: str, weights_mib: int, kv_mib: int, plot_path: Path | None) -> None:
    """Run and write."""
    if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'gpupool[bench]'")
    sizes = [size // 2 * 2 * MIB for size in (weights_mib, kv_mib)]
    with (
        tempfile.TemporaryDirectory() as folder,
        daemon(device, sum(sizes), PAGE_BYTES) as pool,
    ):
        first, second = (Subject(pool.socket_path, name, *sizes) for name in "ab")
        events = swap(first, second, Path(folder))
        for subject in (first, second):
            subject.model.close()
    output.write_text(json.dumps({"traceEvents": events}))
    click.echo(
        f"{output}: {len(events)} events, {1e3 * overlap_s(events):.1f} ms of copies at once"
    )
    if plot_path is not None:
        plot(events, plot_path)


if __name__ == "__main__":
    main()
