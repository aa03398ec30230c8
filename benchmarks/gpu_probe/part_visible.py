"""Whether bytes are there that another process wrote and waited for."""

from __future__ import annotations

import os
from ctypes import c_uint, c_uint64
from multiprocessing.connection import Connection
from typing import Any

from gpu_probe.device import MIB, Device, Pinned, Settings
from gpu_probe.driver import MissingError
from gpu_probe.kernels import Kernels
from gpu_probe.partner import partner, say, send_descriptor

PAGE_BYTES = 2 * MIB
ROUNDS = 100
WRITES = ("copy", "fill", "kernel")
WAITS = ("event", "stream")


def writer(connection: Connection, settings: Settings) -> None:
    """Write what is asked for, by what is asked for, wait, and say so."""
    device = Device(settings)
    page = device.create(PAGE_BYTES)
    address = device.reserve(PAGE_BYTES)
    device.map(address, PAGE_BYTES, page)
    device.access(address, PAGE_BYTES)
    pinned, stream, event = Pinned(device, PAGE_BYTES), device.stream(), device.event()
    send_descriptor(connection, device.export(page))
    kernels: Kernels | None = None
    while True:
        write, wait, value = connection.recv()
        if write == "copy":
            pinned.view[:] = bytes([value]) * PAGE_BYTES
            device.to_device(address, pinned.address, PAGE_BYTES, stream)
        elif write == "fill":
            device.cu("cuMemsetD8Async", address, value, PAGE_BYTES, stream)
        else:
            kernels = kernels or Kernels(device)
            words = c_uint64(PAGE_BYTES // 4)
            value = c_uint(value * 0x01010101)
            kernels.launch("fill", stream, c_uint64(address), words, value, blocks=64)
        if wait == "event":
            device.cu("cuEventRecord", event, stream)
            device.cu("cuEventSynchronize", event)
        else:
            device.wait(stream)
        say(connection, None)


def run(settings: Settings) -> dict[str, Any]:
    """What was not there, by way of writing, of waiting and of looking; 0 is hoped for."""
    device = Device(settings)
    pinned, counted, stream = Pinned(device, PAGE_BYTES), Pinned(device, 4096), device.stream()
    kernels = Kernels(device)
    figures: dict[str, Any] = {"rounds_each": ROUNDS}
    with partner(writer, settings) as other:
        fd = other.descriptor()
        page, address = device.import_page(fd), device.reserve(PAGE_BYTES)
        os.close(fd)
        device.map(address, PAGE_BYTES, page)
        device.access(address, PAGE_BYTES)
        for write in WRITES:
            for wait in WAITS:
                by_copy = by_kernel = 0
                try:
                    for turn in range(ROUNDS):
                        value = turn % 250 + 1
                        other.ask((write, wait, value))
                        by_kernel += _seen_wrong(device, kernels, stream, address, value, counted)
                        device.to_host(pinned.address, address, PAGE_BYTES, stream)
                        device.wait(stream)
                        by_copy += PAGE_BYTES - bytes(pinned.view).count(value)
                except MissingError as error:
                    figures[f"{write}_{wait}"] = str(error)
                    continue
                figures[f"{write}_{wait}"] = {
                    "wrong_words_seen_by_a_kernel": by_kernel,
                    "wrong_bytes_seen_by_a_copy": by_copy,
                }
    return figures


def _seen_wrong(
    device: Device, kernels: Kernels, stream: Any, address: int, value: int, counted: Pinned
) -> int:
    counted.view[:8] = bytes(8)
    words, expected = c_uint64(PAGE_BYTES // 4), c_uint(value * 0x01010101)
    out = c_uint64(counted.on_device)
    kernels.launch("count", stream, c_uint64(address), words, expected, out, blocks=64)
    device.wait(stream)
    return counted.word(0)
