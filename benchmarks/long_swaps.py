"""Swaps two models in and out of a pool that holds one, for long, and looks whether anything grows.

    python benchmarks/long_swaps.py --device host --mib 16
    python benchmarks/long_swaps.py --device cuda --json long_swaps.json
    python benchmarks/long_swaps.py --device cuda --daemon --json long_swaps_daemon.json

Each swap brings one model in, all of it, verified, and thereby the other out. Now and then a model
is written to while it is in, and what is on the device is compared, byte by byte, with what should
be there. Some two hundred times, always with the same model in, figures are taken: what the device
has not free, of this process and with --daemon of the daemon (to whom the pages belong then)
descriptors, threads, mappings, address space and memory, and of gpupool's drivers in this process
pages, reserved, mapped and registered bytes, streams and events.

After a warm-up of a tenth, no figure may grow: the least value of the last tenth must not be above
the largest of the first by more than the tolerance, which is 0 for all that is counted one by one
(benchmarks/process_figures.py has the others and why). Exits with 0 if none did, with 1 if one did
or a byte was wrong, with 2 where there is no such device. On a GPU nobody else should use it: the
device tells of all processes together.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from device_memory import PIECE_BYTES, DeviceMemory, device_memory
from figures_file import keep
from pool_process import daemon
from process_figures import TOLERANCES, named, of_drivers, of_process
from steadiness import judged

import gpupool
from gpupool.daemon.client import DaemonSession
from gpupool.daemon.queries import query_status
from gpupool.errors import GpupoolError

MIB = 1 << 20
SAMPLES, LINES, CHECKS = 200, 20, 50
CACHE_PART = 16  # the KV cache has so much of what the weights have
# Odd, so that both models get their turn.
WRITE_EVERY, WEIGHTS_EVERY = 7, 3


class WrongError(Exception):
    """Something is not as it should be: a sentence."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    device: str
    swaps: int
    weights_bytes: int
    page_bytes: int
    has_daemon: bool

    @property
    def cache_bytes(self) -> int:
        """Of each model's KV cache."""
        return max(1, self.weights_bytes // CACHE_PART // self.page_bytes) * self.page_bytes

    @property
    def budget_bytes(self) -> int:
        """Room for one model."""
        return -(-self.weights_bytes // self.page_bytes) * self.page_bytes + self.cache_bytes


@dataclass(frozen=True)
class Place:
    """Models in a pool, and what that pool has now."""

    join: Callable[[str], gpupool.Model]
    figures: Callable[[], dict[str, int]]


class Subject:
    """A model, and what should be in its memory."""

    def __init__(self, model: gpupool.Model, memory: DeviceMemory, plan: Plan, seed: int) -> None:
        self.model, self._memory = model, memory
        self._random = random.Random(seed)
        self._weights = model.region("weights", plan.weights_bytes)
        self._cache = model.region("kv_cache", plan.cache_bytes)
        self._expected = {
            tag: bytearray(region.bytes)
            for tag, region in (("weights", self._weights), ("kv_cache", self._cache))
        }
        for at in range(0, plan.weights_bytes, PIECE_BYTES):  # random takes no 2^31 bits at once
            size = min(PIECE_BYTES, plan.weights_bytes - at)
            self._expected["weights"][at : at + size] = self._random.randbytes(size)
        memoryview(self._weights.image())[:] = self._expected["weights"]
        self._weights.adopt_image()

    def write(self, to_weights: bool) -> None:
        """Change a piece of it; it is resident."""
        tag, region = ("weights", self._weights) if to_weights else ("kv_cache", self._cache)
        size = min(region.bytes, PIECE_BYTES)
        offset = self._random.randrange(region.bytes - size + 1)
        data = self._random.randbytes(size)
        self._memory.write(region.address + offset, data)
        self._expected[tag][offset : offset + size] = data
        region.mark_written([(offset, size)])

    def check(self, swap: int) -> None:
        """Raise WrongError unless every byte of it is what it should be; it is resident."""
        for tag, region in (("weights", self._weights), ("kv_cache", self._cache)):
            for at in range(0, region.bytes, PIECE_BYTES):
                expected = self._expected[tag][at : at + PIECE_BYTES]
                if self._memory.read(region.address + at, len(expected)) != expected:
                    raise WrongError(
                        f"after swap {swap} the {tag} of model {self.model.name!r} are not what "
                        f"was written, between bytes {at} and {at + len(expected)}"
                    )

    def came(self, swap: int, times: int) -> None:
        """Raise WrongError unless it came in so often, and as a whole the last time."""
        if self.model.swap_ins != times:
            raise WrongError(
                f"swap {swap} was none: model {self.model.name!r} has come in "
                f"{self.model.swap_ins} times, and not {times}"
            )
        report = self.model.last_swap_in
        if report is None or report.copied_bytes < self._weights.bytes:
            raise WrongError(f"swap {swap} brought less than all of the weights in")


@contextlib.contextmanager
def embedded(plan: Plan) -> Iterator[Place]:
    """A pool in this process."""
    pool = gpupool.Pool(
        device=plan.device, budget_bytes=plan.budget_bytes, page_bytes=plan.page_bytes
    )
    try:
        yield Place(lambda name: pool.model(name, verify="always"), dict)
    finally:
        pool.close()


@contextlib.contextmanager
def behind_daemon(plan: Plan) -> Iterator[Place]:
    """A pool in a process of its own."""
    with (
        daemon(plan.device, plan.budget_bytes, plan.page_bytes) as running,
        contextlib.ExitStack() as models,
    ):

        def join(name: str) -> gpupool.Model:
            session = DaemonSession(running.socket_path, name)
            model = gpupool.Model(name, session, verify="always")
            models.callback(model.close)
            return model

        def figures() -> dict[str, int]:
            of_the_daemon = of_process(running.pid)
            status = query_status(running.socket_path)
            of_the_daemon["host_bytes"] = status.host_bytes
            of_the_daemon["granted_pages"] = status.pages_granted
            return named("daemon", of_the_daemon)

        yield Place(join, figures)


def swap_for_long(
    plan: Plan, memory: DeviceMemory, reached: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Do all of it, and now and then say what was reached, which is judged at the end alone.

    Raises WrongError for what is not as it should be, but for what grew.
    """
    samples: list[dict[str, int]] = []
    # Always after the second model came in, so that figures are of the same state.
    sample_every = max(1, plan.swaps // SAMPLES // 2) * 2
    check_every = (plan.swaps // CHECKS) | 1
    checks = writes = 0
    began = time.monotonic()

    def so_far(swap: int) -> dict[str, Any]:
        return {
            "is_gpu": memory.is_gpu,
            **asdict(plan),
            "done": swap,
            "took_s": round(time.monotonic() - began, 2),
            "writes": writes,
            "checks": checks,
            "sample_every": sample_every,
            "samples": samples,
        }

    with (behind_daemon if plan.has_daemon else embedded)(plan) as place:
        subjects = [Subject(place.join(name), memory, plan, seed) for seed, name in enumerate("ab")]
        drivers = {id(each.model.driver): each.model.driver for each in subjects}.values()
        for swap, subject in zip(range(1, plan.swaps + 1), itertools.cycle(subjects), strict=False):
            with subject.model.resident():
                subject.came(swap, (swap + 1) // 2)
                if swap % WRITE_EVERY == 0:
                    writes += 1
                    subject.write(to_weights=writes % WEIGHTS_EVERY == 0)
                if swap % check_every == 0 or swap > plan.swaps - len(subjects):
                    checks += 1
                    subject.check(swap)
            if swap % sample_every == 0:
                used = memory.used_bytes()
                samples.append(
                    ({} if used is None else {"device used_bytes": used})
                    | named("worker", of_process(os.getpid()) | of_drivers(drivers))
                    | place.figures()
                )
            if swap % -(-plan.swaps // LINES) == 0:
                reached(so_far(swap))
        found = so_far(plan.swaps)
    verdicts = judged(samples, TOLERANCES)
    found["figures"] = {name: asdict(each) | {"grew": each.grew} for name, each in verdicts.items()}
    return found


def sentence(found: dict[str, Any]) -> str:
    """What grew, or nothing."""
    grew = [
        f"{name} from at most {each['first'][1]} to at least {each['last'][0]}"
        for name, each in found["figures"].items()
        if each["grew"]
    ]
    return f"over {found['swaps']} swaps grew: {'; '.join(grew)}" if grew else ""


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    where = "behind a daemon" if found["has_daemon"] else "in one process"
    lines = [
        f"{found['swaps']} swaps of {found['weights_bytes'] / MIB:g} MiB on {found['device']}, "
        f"{where}, in {found['took_s']} s; {found['writes']} writes, and "
        f"{found['checks']} looks at every byte",
    ]
    if found["device"] != "host" and not found["is_gpu"]:
        lines.append("NOT A GPU: the driver is the stand-in of the tests.")
    head = ("figure", "first tenth", "last tenth", "may grow by")

    def span(values: tuple[int, int]) -> str:
        return "-".join(map(str, sorted({*values})))

    rows = [
        (name, span(each["first"]), span(each["last"]), str(each["tolerance"]))
        for name, each in found["figures"].items()
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--device", required=True, help="host, cuda or cuda:<ordinal>.")
@click.option("--swaps", default=10_000, show_default=True, type=click.IntRange(100))
@click.option("--mib", default=256, show_default=True, type=click.IntRange(1), help="Of weights.")
@click.option("--page-mib", default=2, show_default=True, type=click.IntRange(1))
@click.option("--daemon", "has_daemon", is_flag=True, help="The pool is a process of its own.")
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
def main(
    device: str, swaps: int, mib: int, page_mib: int, has_daemon: bool, json_path: str | None
) -> None:
    """Run and report."""
    plan = Plan(device, swaps, mib * MIB, page_mib * MIB, has_daemon)
    try:
        memory = device_memory(device)
    except (GpupoolError, RuntimeError) as error:
        print(f"there is no such device: {error}", file=sys.stderr)
        sys.exit(2)

    def reached(found: dict[str, Any]) -> None:
        keep(json_path, found, complete=False)
        line = f"{found['done']} of {swaps} swaps in {found['took_s']:.0f} s"
        print(line, file=sys.stderr, flush=True)

    try:
        found = swap_for_long(plan, memory, reached)
        wrong = sentence(found)
    except (GpupoolError, WrongError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    found = keep(json_path, found, complete=True)
    print(json.dumps(found) if json_path == "-" else table(found))
    if wrong:
        print(wrong, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
