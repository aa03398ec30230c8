"""Rates of copies from and to pinned memory, by the size of a chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpu_probe.device import GIB, MIB, Area, Device, Pinned, Settings

CHUNKS = (MIB // 4, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
MOST_COPIES = 2048


def run(settings: Settings) -> dict[str, Any]:
    """GiB per second each way alone, and of each way with both at once; the best of three."""
    device = Device(settings)
    size = settings.total_bytes // 4
    there = [Area(device, size, min(size, 64 * MIB)) for _ in range(2)]
    here = [Pinned(device, size) for _ in range(2)]
    streams = [device.stream(), device.stream()]
    to, back = (
        lambda offset, chunk: device.to_device(
            there[0].address + offset, here[0].address + offset, chunk, streams[0]
        ),
        lambda offset, chunk: device.to_host(
            here[1].address + offset, there[1].address + offset, chunk, streams[1]
        ),
    )
    ways: dict[str, tuple[Callable[[int, int], None], ...]] = {
        "to_device": (to,),
        "to_host": (back,),
        "each_of_both": (to, back),
    }
    figures: dict[str, Any] = {}
    for chunk in (each for each in CHUNKS if each <= size):
        offsets = range(0, size, chunk)[:MOST_COPIES]
        row = {}
        for way, copies in ways.items():
            taken_s = []
            for _ in range(4):  # the first is not counted
                began = time.perf_counter()
                for offset in offsets:
                    for copy in copies:
                        copy(offset, chunk)
                for stream in streams:
                    device.wait(stream)
                taken_s.append(time.perf_counter() - began)
            row[f"{way}_gib_s"] = len(offsets) * chunk / GIB / min(taken_s[1:])
        figures[f"chunk_{chunk // 1024}_kib"] = row
    return figures
