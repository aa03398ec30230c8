"""How long swaps take beside plain copies of as many bytes, in one run.

    python benchmarks/bench_swap.py --device host --mib 1024 --json -

Every round times each thing once, so that all of them meet the same noise; figures are medians.
What swaps are held against is memcpy between two warm buffers of huge pages, by 1 thread and by as
many as there are processors, of which the faster counts; on a GPU it is a copy from pinned memory.

Keys: swap_in_ratio_to_memcpy (rate of a swap-in's copies, unverified, over that of memcpy),
verify_overhead (how much longer the copies of a swap-in take when all is verified, as a part of
what they take when nothing is), clean_swap_out_bytes (what a swap-out of weights nobody wrote to
copies), resident95_bytes_fraction (what of a model is copied that left for one that needs a
twentieth of its room), prefetched_visible_fraction (of three models in turn and room for two, how
long one waits for a model that was prefetched, over how long for one that was not), of each kind of
swap map_ms, copy_ms, swap_in_total_ms, swap_out_clean_ms and swap_out_written_ms (of weights in
which every byte is another), and complete: false in a file that is written after
each round, if that is not all.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from figures_file import keep
from plain_copies import plain_copies
from pool_process import daemon

import gpupool
from gpupool.daemon.client import DaemonSession

MIB = 1 << 20
VERIFIES = ("off", "always")


class Subject:
    """A model with one region of weights, alone in a pool."""

    def __init__(self, device: str, size_bytes: int, page_bytes: int, verify: str) -> None:
        self.pool = gpupool.Pool(device=device, budget_bytes=size_bytes, page_bytes=page_bytes)
        self.model = self.pool.model("bench", verify=verify)
        self.region = self.model.region("weights", size_bytes)
        self.image = torch.frombuffer(self.region.image(), dtype=torch.uint8)
        self.image.view(torch.int64).random_(generator=torch.Generator().manual_seed(1))
        self.region.adopt_image()

    def swap(self) -> tuple[Any, Any]:
        """In and out, and what is reported of it."""
        with self.model.resident():
            pass
        self.model.swap_out()
        return self.model.last_swap_in, self.model.last_swap_out

    def save(self) -> Any:
        """Of a swap-out of which every byte is another, what is reported."""
        with self.model.resident(writes=True):
            torch.from_dlpack(self.region).add_(1)
            if self.model.device_kind == "cuda":
                torch.cuda.synchronize()
        self.model.swap_out()
        return self.model.last_swap_out


def load(model: gpupool.Model, size_bytes: int) -> gpupool.Model:
    """Give it weights of some kind."""
    region = model.region("weights", size_bytes)
    torch.frombuffer(region.image(), dtype=torch.uint8).fill_(7)
    region.adopt_image()
    return model


def resident95(device: str, size_bytes: int, page_bytes: int) -> float:
    """What part of a model is copied as it comes back after one that needs a twentieth of it."""
    pages = size_bytes // page_bytes
    pool = gpupool.Pool(device=device, budget_bytes=pages * page_bytes, page_bytes=page_bytes)
    large = load(pool.model("large"), pages * page_bytes)
    small = load(pool.model("small"), max(1, pages // 20) * page_bytes)
    for model in (large, small, large):
        with model.resident():
            pass
    assert large.last_swap_in is not None
    fraction = large.last_swap_in.copied_bytes / (pages * page_bytes)
    pool.close()
    return fraction


def visible(device: str, size_bytes: int, page_bytes: int, runs: int) -> dict[str, float]:
    """Milliseconds one waits for the next of three models, where two fit, as workers have them.

    Every other round of the three each is fetched ahead while the one before it is in use.
    """
    each_bytes = size_bytes // page_bytes * page_bytes
    waits: dict[bool, list[float]] = {True: [], False: []}
    with daemon(device, 2 * each_bytes, page_bytes) as pool:
        models = [
            load(gpupool.Model(name, DaemonSession(pool.socket_path, name)), each_bytes)
            for name in "abc"
        ]
        for turn in range(6 * (runs + 1)):
            ahead = turn // 3 % 2 == 1
            current, following = models[turn % 3], models[(turn + 1) % 3]
            with current.resident():
                if ahead:
                    following.prefetch()
            begun_s = time.perf_counter()
            with following.resident():
                waits[ahead].append(1e3 * (time.perf_counter() - begun_s))
        for model in models:
            model.close()
    # The first round of each does not count: images are touched, and pages made.
    return {
        "prefetched": statistics.median(waits[True][3:]),
        "not_prefetched": statistics.median(waits[False][3:]),
    }


def measure(device: str, size_bytes: int, page_bytes: int, runs: int) -> Iterator[dict[str, Any]]:
    """All of it ``runs`` times, as far as it is; a first round counts for nothing."""
    subjects = {how: Subject(device, size_bytes, page_bytes, how) for how in VERIFIES}
    plain = plain_copies(device, subjects["off"].image)
    of_all = {"device": device, "bytes": size_bytes, "page_bytes": page_bytes}
    found: dict[str, Any] = {}
    taken: defaultdict[str, list[float]] = defaultdict(list)
    clean_bytes = 0
    for round_ in range(runs + 1):
        if round_ == 1:
            taken.clear()
        for name, copy in plain.items():
            begun_s = time.perf_counter()
            copy()
            taken[name].append(time.perf_counter() - begun_s)
        for how, subject in subjects.items():
            came, went = subject.swap()
            taken[f"{how} map"].append(came.map_s)
            taken[f"{how} copy"].append(came.copy_s)
            taken[f"{how} total"].append(came.total_s)
            taken[f"{how} out"].append(went.total_s)
            saved = subject.save()
            taken[f"{how} save"].append(saved.total_s)
            assert saved.copied_bytes == size_bytes
            clean_bytes = max(clean_bytes, went.copied_bytes)
            assert came.copied_bytes == size_bytes
            assert came.verified_bytes == (size_bytes if how == "always" else 0)
        if round_ > 0:
            found = of_all | {"runs": round_, "clean_swap_out_bytes": clean_bytes}
            found |= of_swaps(taken, list(plain), size_bytes)
            yield found
    found |= {"resident95_bytes_fraction": resident95(device, size_bytes, page_bytes)}
    yield found
    waits = visible(device, size_bytes // 2, page_bytes, runs)
    found |= {"visible_ms": waits}
    found |= {"prefetched_visible_fraction": waits["prefetched"] / waits["not_prefetched"]}
    yield found


def of_swaps(
    taken: Mapping[str, Sequence[float]], plain: Sequence[str], size_bytes: int
) -> dict[str, Any]:
    """Medians of the rounds so far."""
    middle = {name: statistics.median(times) for name, times in taken.items()}
    found: dict[str, Any] = {
        "swap_in_ratio_to_memcpy": min(middle[name] for name in plain) / middle["off copy"],
        "verify_overhead": middle["always copy"] / middle["off copy"] - 1,
        "gbps": {name: size_bytes / middle[name] / 1e9 for name in plain},
    }
    for how in VERIFIES:
        found[f"verify_{how}"] = {
            "map_ms": 1e3 * middle[f"{how} map"],
            "copy_ms": 1e3 * middle[f"{how} copy"],
            "swap_in_total_ms": 1e3 * middle[f"{how} total"],
            "swap_out_clean_ms": 1e3 * middle[f"{how} out"],
            "swap_out_written_ms": 1e3 * middle[f"{how} save"],
        }
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """What each takes: plain copies, and swap-ins as mapping and copying."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [*found["gbps"], *(f"verify_{how}" for how in VERIFIES)]
    copy = [1e3 * found["bytes"] / (1e9 * rate) for rate in found["gbps"].values()]
    copy += [found[f"verify_{how}"]["copy_ms"] for how in VERIFIES]
    mapped = [0.0] * len(found["gbps"]) + [found[f"verify_{how}"]["map_ms"] for how in VERIFIES]
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.barh(names, mapped, label="mapping")
    axes.barh(names, copy, left=mapped, label="copying")
    axes.set_xlabel(f"milliseconds for {found['bytes'] / MIB:.0f} MiB, device {found['device']}")
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path)


@click.command(help=__doc__)
@click.option("--device", required=True, help="host, cuda or cuda:<ordinal>.")
@click.option("--mib", default=1024, show_default=True, type=click.IntRange(2))
@click.option("--page-mib", default=2, show_default=True, type=click.IntRange(1))
@click.option("--runs", default=11, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
@click.option("--plot", "plot_path", help="Draw them into a PNG or SVG file; needs matplotlib.")
def main(
    device: str, mib: int, page_mib: int, runs: int, json_path: str | None, plot_path: str | None
) -> None:
    """Run and report."""
    if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'gpupool[bench]'")
    found: dict[str, Any] = {}
    for found in measure(device, mib * MIB, page_mib * MIB, runs):
        keep(json_path, found, complete=False)
    found = keep(json_path, found, complete=True)
    if json_path is None or json_path == "-":
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if plot_path is not None:
        plot(found, Path(plot_path))


if __name__ == "__main__":
    main()
