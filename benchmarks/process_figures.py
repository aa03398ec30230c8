"""What processes, drivers and the device have at one moment, in figures that should stay flat."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gpupool._core import Driver
from gpupool.statistics import DriverStatistics

MIB = 1 << 20

#: What a figure may grow by from the beginning to the end of a run, and why that is no leak.
TOLERANCES = {
    # Counted one by one, and the same whenever a model has come in.
    "descriptors": 0,
    "threads": 0,
    "pages": 0,
    "reserved_bytes": 0,
    "mapped_bytes": 0,
    "registered_bytes": 0,
    "streams": 0,
    "events": 0,
    "host_bytes": 0,
    "granted_pages": 0,
    # The allocator of C makes an arena of 64 MiB of addresses, of two mappings, for a thread that
    # meets another: twice that, at any time.
    "mappings": 4,
    "address_bytes": 128 * MIB,
    # Of 10,000 swaps with less than a KiB each. Python's own memory goes up and down by less.
    "memory_bytes": 8 * MIB,
    # A driver takes the device's memory in steps of 2 MiB for what it needs itself.
    "used_bytes": 8 * MIB,
}


def of_process(pid: int) -> dict[str, int]:
    """Of a process of this machine: its descriptors, threads, mappings and memory."""
    folder = Path("/proc") / str(pid)
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    return {
        "descriptors": len(os.listdir(folder / "fd")),  # noqa: PTH208
        "threads": int(status["Threads"]),
        "mappings": (folder / "maps").read_bytes().count(b"\n"),
        "address_bytes": int(status["VmSize"].split()[0]) << 10,
        "memory_bytes": int(status["VmRSS"].split()[0]) << 10,
    }


def of_drivers(drivers: Iterable[Driver]) -> dict[str, int]:
    """What there is of everything in drivers of this process, counted call by call."""
    all_of_them = [DriverStatistics.of(driver) for driver in drivers]
    return {
        "pages": sum(each.pages for each in all_of_them),
        "reserved_bytes": sum(each.reserved_bytes for each in all_of_them),
        "mapped_bytes": sum(each.mapped_bytes for each in all_of_them),
        "registered_bytes": sum(each.registered_bytes for each in all_of_them),
        "streams": sum(each.streams for each in all_of_them),
        "events": sum(each.events for each in all_of_them),
    }


def named(whose: str, figures: dict[str, int]) -> dict[str, int]:
    """The same, with whose they are before each."""
    return {f"{whose} {name}": value for name, value in figures.items()}
