"""Whether a page outlives its creator, and when its memory comes free."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any

from gpu_probe.device import MIB, Device, Settings
from gpu_probe.partner import partner, say, send_descriptor

VALUE = 0x5A
PATIENCE_S = 5.0


def creator(connection: Connection, settings: Settings) -> None:
    """Make a page with something in it, hand it out, and wait to be killed."""
    device = Device(settings)
    page_bytes, give = connection.recv()
    page, address = device.create(page_bytes), device.reserve(page_bytes)
    device.map(address, page_bytes, page)
    device.access(address, page_bytes)
    stream = device.stream()
    device.cu("cuMemsetD8Async", address, VALUE, page_bytes, stream)
    device.wait(stream)
    if give:
        send_descriptor(connection, device.export(page))
    say(connection, "ready")
    connection.recv()


def run(settings: Settings) -> dict[str, Any]:
    """What is found after the creator was killed."""
    device = Device(settings)
    page_bytes = max(2 * MIB, settings.total_bytes // 8)
    figures: dict[str, Any] = {"page_mib": page_bytes // MIB}
    before = device.free_bytes()

    with partner(creator, settings) as other:
        other.tell((page_bytes, True))
        fd = other.descriptor()
        other.hear()
        _kill(other.process)
        figures["imported_after_its_death"] = _contents(device, fd, page_bytes)
    held = before - device.free_bytes()
    figures["memory_held_by_the_descriptor_mib"] = held / MIB
    os.close(fd)
    figures["free_again_after_the_last_close"] = _freed(device, before)

    with partner(creator, settings) as other:
        other.tell((page_bytes, True))
        fd = other.descriptor()
        other.hear()
        page, address = device.import_page(fd), device.reserve(page_bytes)
        os.close(fd)
        device.map(address, page_bytes, page)
        device.access(address, page_bytes)
        _kill(other.process)
        figures["mapped_before_its_death"] = _described(device, address, page_bytes)
    device.unmap(address, page_bytes)
    device.release(page)
    figures["free_again_after_unmap_and_release"] = _freed(device, before)

    with partner(creator, settings) as other:
        other.tell((page_bytes, False))
        other.hear()
        figures["memory_held_while_it_lives_mib"] = (before - device.free_bytes()) / MIB
        _kill(other.process)
    figures["free_again_after_the_death_of_all"] = _freed(device, before)
    return figures


def _kill(process: Any) -> None:
    process.kill()
    process.join()


def _contents(device: Device, fd: int, page_bytes: int) -> str:
    page, address = device.import_page(fd), device.reserve(page_bytes)
    device.map(address, page_bytes, page)
    device.access(address, page_bytes)
    found = _described(device, address, page_bytes)
    device.unmap(address, page_bytes)
    device.release(page)
    return found


def _described(device: Device, address: int, page_bytes: int) -> str:
    right = device.bytes_of(address, page_bytes).count(VALUE)
    return "all bytes are there" if right == page_bytes else f"{page_bytes - right} bytes are wrong"


def _freed(device: Device, before: int) -> str:
    """When as much is free as before, to within a page of the driver's own."""
    began = time.perf_counter()
    while (missing := before - device.free_bytes()) > 2 * MIB:
        if time.perf_counter() - began > PATIENCE_S:
            return f"{missing / MIB:.0f} MiB are missing after {PATIENCE_S:.0f} s"
    return f"after {1e3 * (time.perf_counter() - began):.1f} ms"
