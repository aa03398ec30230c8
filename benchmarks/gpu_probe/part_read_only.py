"""Memory for reading alone: of pages that could be written to, and of one page in two processes."""

from __future__ import annotations

import os
from ctypes import c_uint, c_uint64
from multiprocessing.connection import Connection
from typing import Any

from gpu_probe.device import MIB, Area, Device, Pinned, Settings
from gpu_probe.driver import READ, READ_WRITE, CudaError
from gpu_probe.kernels import Kernels
from gpu_probe.partner import partner, received, say
from gpu_probe.timing import timed_s

PAGE_BYTES = 2 * MIB
PAGES = 32
VALUE = 0x11
WRITES = ("kernel", "fill", "copy")


def attempt(connection: Connection, settings: Settings) -> None:
    """Map what the first process has, for reading alone, look, and then write all the same."""
    device = Device(settings)
    write, fd = connection.recv(), received(connection)
    page, address = device.import_page(fd), device.reserve(PAGE_BYTES)
    device.map(address, PAGE_BYTES, page)
    device.access(address, PAGE_BYTES, READ)
    say(connection, _wrong_words(device, address))
    pinned, stream, kernels = Pinned(device, 4096), device.stream(), Kernels(device)
    try:
        if write == "kernel":
            words, value = c_uint64(PAGE_BYTES // 4), c_uint(0x22222222)
            kernels.launch("fill", stream, c_uint64(address), words, value, blocks=4)
        elif write == "fill":
            device.cu("cuMemsetD8Async", address, 0x22, PAGE_BYTES, stream)
        else:
            device.to_device(address, pinned.address, 4096, stream)
        said = ""
    except CudaError as error:
        said = f"{error}; "
    after = device.cu.name(device.cu.code("cuStreamSynchronize", stream))
    then = device.cu.name(device.cu.code("cuCtxSynchronize"))
    say(connection, f"{said}the wait answered {after}, the next call {then}")


def run(settings: Settings) -> dict[str, Any]:
    """What calls answer, what they cost, and what a write does, each in a process of its own."""
    device = Device(settings)
    area, stream = Area(device, PAGES * PAGE_BYTES, PAGE_BYTES), device.stream()
    device.cu("cuMemsetD8Async", area.address, VALUE, area.bytes, stream)
    device.wait(stream)
    figures: dict[str, Any] = {"mappings": PAGES}
    for name, flags in (
        ("to_reading", READ),
        ("to_writing", READ_WRITE),
        ("to_reading_again", READ),
    ):
        code = 0

        def change(flags: int = flags) -> None:
            nonlocal code
            code = device.access_code(area.address, area.bytes, flags)

        taken_ms = 1e3 * timed_s(change)
        figures[name] = {"answer": device.cu.name(code), "ms": taken_ms}
    figures["wrong_words_where_it_was_made_read_only"] = _wrong_words(device, area.address)
    fd = device.export(area.pages[0])
    for write in WRITES:
        figures[f"{write}_in_another_process"] = _attempt(settings, write, fd)
        left = device.bytes_of(area.address, PAGE_BYTES).count(VALUE)
        figures[f"bytes_changed_by_{write}"] = PAGE_BYTES - left
    os.close(fd)
    return figures


def _attempt(settings: Settings, write: str, fd: int) -> dict[str, Any]:
    with partner(attempt, settings) as other:
        other.tell(write)
        other.give(fd)
        try:
            wrong = other.hear()
        except RuntimeError as error:
            return {"reading_in_two_processes": str(error)}
        found: dict[str, Any] = {"wrong_words_read_in_two_processes": wrong}
        try:
            return found | {"the_write": other.hear()}
        except RuntimeError as error:
            return found | {"the_write": str(error)}


def _wrong_words(device: Device, address: int) -> int:
    counted, stream = Pinned(device, 4096), device.stream()
    words, expected = c_uint64(PAGE_BYTES // 4), c_uint(VALUE * 0x01010101)
    out = c_uint64(counted.on_device)
    Kernels(device).launch("count", stream, c_uint64(address), words, expected, out, blocks=64)
    device.wait(stream)
    return counted.word(0)
