"""Work that goes on while something else is measured."""

from __future__ import annotations

import time
from ctypes import c_uint, c_uint64, c_void_p
from typing import Any

from gpu_probe.device import MIB, Area, Device, Pinned
from gpu_probe.kernels import (
    BEAT_WORDS,
    BEATS,
    BEGAN_NS,
    ENDED_NS,
    LATE_COUNT,
    LATE_NS,
    LONGEST_NS,
    SHORTEST_NS,
    Kernels,
)

MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
LAUNCH_S = 0.001  # how long one launch of a loop takes, about
MOST_ROUNDS = 1 << 22  # on a driver whose kernels take no time
COPY_BYTES = 16 * MIB


class KernelLoop:
    """The same kernel over and over, on the whole GPU: of arithmetic or of reading memory."""

    def __init__(self, device: Device, kind: str) -> None:
        self._device, self._kernels = device, Kernels(device)
        self._stream, self._events = device.stream(), [device.event(), device.event()]
        self._blocks = 8 * device.attribute(MULTIPROCESSORS)
        self._kind, self._rounds = kind, 1
        page_bytes = max(device.granularity(), 2 * MIB)
        self._area = Area(device, max(page_bytes, device.settings.total_bytes // 4), page_bytes)
        device.cu("cuMemsetD8Async", self._area.address, 0, self._area.bytes, self._stream)
        self._launch()  # the first one also has the kernel loaded
        device.wait(self._stream)
        while self._rounds < MOST_ROUNDS and (taken_s := self._once_s()) < LAUNCH_S:
            self._rounds *= 2 if taken_s > LAUNCH_S / 8 else 8

    def _once_s(self) -> float:
        began = time.perf_counter()
        self._launch()
        self._device.wait(self._stream)
        return time.perf_counter() - began

    def _launch(self) -> None:
        memory, rounds = c_uint64(self._area.address), c_uint(self._rounds)
        if self._kind == "arithmetic":
            self._kernels.launch("work", self._stream, memory, rounds, blocks=self._blocks)
        else:
            pieces = c_uint64(self._area.bytes // 16)
            self._kernels.launch(
                "stream", self._stream, memory, pieces, rounds, blocks=self._blocks
            )

    def run(self, seconds: float) -> dict[str, Any]:
        """Two launches are always asked for. Launches per second, and the longest wait for one."""
        done, longest_s, events = 0, 0.0, self._events
        began = before = time.perf_counter()
        while before - began < seconds:
            self._launch()
            self._device.cu("cuEventRecord", events[done % 2], self._stream)
            if done > 0:
                self._device.cu("cuEventSynchronize", events[(done - 1) % 2])
            done += 1
            now = time.perf_counter()
            longest_s, before = max(longest_s, now - before), now
        self._device.wait(self._stream)
        taken_s = time.perf_counter() - began
        return {"per_s": done / taken_s, "longest_ms": 1e3 * longest_s}


class CopyLoop:
    """Copies of 16 MiB over and over, in one direction."""

    def __init__(self, device: Device, direction: str) -> None:
        self._device, self._direction = device, direction
        self._stream, self._events = device.stream(), [device.event() for _ in range(4)]
        page_bytes = max(device.granularity(), COPY_BYTES)
        self._area = Area(device, page_bytes, page_bytes)
        self._pinned = Pinned(device, COPY_BYTES)

    def ask(self) -> None:
        """Ask for one."""
        here, there = self._pinned.address, self._area.address
        if self._direction == "to_device":
            self._device.to_device(there, here, COPY_BYTES, self._stream)
        else:
            self._device.to_host(here, there, COPY_BYTES, self._stream)

    def mark(self, event: c_void_p) -> None:
        """Have an event come behind what was asked for."""
        self._device.cu("cuEventRecord", event, self._stream)

    def wait(self) -> None:
        """Until all have arrived."""
        self._device.wait(self._stream)

    def run(self, seconds: float) -> dict[str, Any]:
        """Four are always asked for. The rate, and the longest wait for one."""
        done, longest_s, events = 0, 0.0, self._events
        began = before = time.perf_counter()
        while before - began < seconds:
            self.ask()
            self._device.cu("cuEventRecord", events[done % 4], self._stream)
            if done >= 3:
                self._device.cu("cuEventSynchronize", events[(done - 3) % 4])
            done += 1
            now = time.perf_counter()
            longest_s, before = max(longest_s, now - before), now
        self.wait()
        taken_s = time.perf_counter() - began
        return {"per_s": done / taken_s, "longest_ms": 1e3 * longest_s}


class Beat:
    """One thread on the GPU that reads memory all the time, and notices when it is held up."""

    def __init__(self, device: Device) -> None:
        self._device, self._kernels, self._stream = device, Kernels(device), device.stream()
        page_bytes = max(device.granularity(), 2 * MIB)
        self._area = Area(device, 16 * page_bytes, page_bytes)
        self._said = Pinned(device, 4096)
        device.cu("cuMemsetD8Async", self._area.address, 0, self._area.bytes, self._stream)
        self.begin(0.001)
        self.end()

    def begin(self, seconds: float) -> None:
        """Return once it is running."""
        for index in range(BEAT_WORDS):
            self._said.view[8 * index : 8 * index + 8] = bytes(8)
        self._kernels.launch(
            "beat",
            self._stream,
            c_uint64(self._area.address),
            c_uint64(self._area.bytes // 4),
            c_uint64((MIB + 4096) // 4),
            c_uint64(int(seconds * 1e9)),
            c_uint64(self._said.on_device),
            threads=1,
        )
        patience = time.perf_counter() + 10
        while self._said.word(BEGAN_NS) == 0:
            if time.perf_counter() > patience:
                raise RuntimeError("a kernel did not begin in 10 s")

    def ended(self) -> bool:
        """Whether it has said that it ended."""
        return self._said.word(ENDED_NS) != 0

    def end(self) -> dict[str, Any]:
        """What it noticed."""
        self._device.wait(self._stream)
        word = self._said.word
        return {
            "beats": word(BEATS),
            "longest_gap_us": word(LONGEST_NS) / 1e3,
            "shortest_gap_us": word(SHORTEST_NS) / 1e3,
            "late_ms": word(LATE_NS) / 1e6,
            "late": word(LATE_COUNT),
        }
