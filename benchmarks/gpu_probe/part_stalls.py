"""What calls about memory cost while something runs, and whether they hold it up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ctypes import c_void_p
from multiprocessing.connection import Connection
from typing import Any, Protocol

from gpu_probe.device import MIB, Device, Settings
from gpu_probe.kernels import load
from gpu_probe.partner import Partner, partner, say
from gpu_probe.running import Beat, CopyLoop
from gpu_probe.timing import each, timed_s

PAGE_SIZES = (2 * MIB, 64 * MIB)
WORK_S = 0.06
MOST_PAGES = 32


class Work(Protocol):
    """Something that goes on for about WORK_S."""

    def begin(self) -> None:
        """Return once it is under way."""

    def running(self) -> bool:
        """Whether it still is."""

    def end(self) -> dict[str, Any]:
        """Wait for it, and what it noticed."""


class Beating:
    """A kernel that reads memory."""

    def __init__(self, device: Device) -> None:
        self._beat = Beat(device)

    def begin(self) -> None:
        """Launch it."""
        self._beat.begin(WORK_S)

    def running(self) -> bool:
        """By what it has written."""
        return not self._beat.ended()

    def end(self) -> dict[str, Any]:
        """Its longest gap."""
        return {"longest_gap_us": self._beat.end()["longest_gap_us"]}


class Copying:
    """A row of copies."""

    def __init__(self, device: Device, direction: str) -> None:
        self._device, self._loop = device, CopyLoop(device, direction)
        self._last = device.event()
        self._count = max(4, int(self._loop.run(WORK_S)["per_s"] * WORK_S))
        self._began = 0.0

    def begin(self) -> None:
        """Ask for all of them."""
        self._began = time.perf_counter()
        for _ in range(self._count):
            self._loop.ask()
        self._loop.mark(self._last)

    def running(self) -> bool:
        """By an event behind the last."""
        return self._device.cu.code("cuEventQuery", self._last) != 0

    def end(self) -> dict[str, Any]:
        """How long they took."""
        self._loop.wait()
        return {"took_ms": 1e3 * (time.perf_counter() - self._began)}


class Elsewhere:
    """Work of another process."""

    def __init__(self, other: Partner) -> None:
        self._other = other
        other.hear()

    def begin(self) -> None:
        """Have it begin."""
        self._other.ask("begin")

    def running(self) -> bool:
        """Ask it."""
        return bool(self._other.ask("running"))

    def end(self) -> dict[str, Any]:
        """What it noticed."""
        noticed: dict[str, Any] = self._other.ask("end")
        return noticed


def _obey(connection: Connection, work: Work) -> None:
    say(connection, "ready")
    while True:
        say(connection, getattr(work, connection.recv())())


def beating(connection: Connection, settings: Settings) -> None:
    """A kernel in this process."""
    _obey(connection, Beating(Device(settings)))


def copying(connection: Connection, settings: Settings) -> None:
    """Copies in this process."""
    _obey(connection, Copying(Device(settings), "to_device"))


def run(settings: Settings) -> dict[str, Any]:
    """For each call: milliseconds with nothing else, and beside each kind of work."""
    device = Device(settings)
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        works: dict[str, Work | None] = {
            "nothing": None,
            "a_kernel": Beating(device),
            "copies_to_host": Copying(device, "to_host"),
            "a_kernel_of_another": Elsewhere(stack.enter_context(partner(beating, settings))),
            "copies_of_another": Elsewhere(stack.enter_context(partner(copying, settings))),
        }
        for page_bytes in (size for size in PAGE_SIZES if size <= settings.total_bytes // 4):
            count = min(MOST_PAGES, settings.total_bytes // 4 // page_bytes)
            for beside, work in works.items():
                for call, make in _calls(device, page_bytes, count):
                    row = figures.setdefault(f"{call}_{page_bytes // MIB}_mib_x{count}", {})
                    row |= _measure(beside, work, make)
    return figures


def _measure(beside: str, work: Work | None, call: Callable[[], Any]) -> dict[str, Any]:
    if work is None:
        return {"alone_ms": 1e3 * timed_s(call)}
    work.begin()
    taken_s = timed_s(call)
    waited = not work.running()
    noticed = {f"{beside}_{key}": value for key, value in work.end().items()}
    return {f"{beside}_ms": 1e3 * taken_s, f"{beside}_waited_for": waited} | noticed


def _calls(device: Device, page_bytes: int, count: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each in turn; every one finds what those before it have left."""
    size = count * page_bytes
    address = device.reserve(size)
    places = range(address, address + size, page_bytes)
    pages: list[int] = []
    fds: list[int] = []
    imported: list[int] = []
    modules: list[c_void_p] = []
    yield "no_call", lambda: None
    yield "create", lambda: pages.extend(device.create(page_bytes) for _ in places)
    yield "export", lambda: fds.extend(device.export(page) for page in pages)
    yield "import", lambda: imported.extend(device.import_page(fd) for fd in fds)
    yield "map", lambda: each(device.map, places, [page_bytes] * count, imported)
    yield "access", lambda: device.access(address, size)
    yield "unmap", lambda: device.unmap(address, size)
    yield "release_of_imported", lambda: each(device.release, imported)
    for fd in fds:
        os.close(fd)
    yield "release", lambda: each(device.release, pages)
    yield "load_module", lambda: modules.append(load(device))
    yield "unload_module", lambda: device.cu("cuModuleUnload", modules[0])
    device.cu("cuMemAddressFree", address, size)
