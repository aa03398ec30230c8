"""What gpupool's daemon rests on: pages of a process that has no context, in this and in others.

Nothing here may ask for a context before the last answer, so processes that need one are others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from gpu_probe.device import MIB, Device, Pages, Settings
from gpu_probe.driver import CudaError
from gpu_probe.partner import partner, received, say
from gpu_probe.timing import timed_s

PAGE_BYTES = 2 * MIB
PAGES = 64
VALUE = 0x3C


def handed_on(connection: Connection, settings: Settings) -> None:
    """Without a context here either: take a page in, hand it on to oneself, and let go."""
    pages, fd = Pages(settings), received(connection)
    page = pages.import_page(fd)
    again = pages.export(page)
    pages.release(page)
    pages.release(pages.import_page(again))
    say(connection, pages.has_context())


def written(connection: Connection, settings: Settings) -> None:
    """In a context: map the page and write to it."""
    device, address = _mapped(connection, settings)
    stream = device.stream()
    device.cu("cuMemsetD8Async", address, VALUE, PAGE_BYTES, stream)
    device.wait(stream)
    say(connection, "written")


def read(connection: Connection, settings: Settings) -> None:
    """In a context: how many bytes are not what was written."""
    device, address = _mapped(connection, settings)
    say(connection, PAGE_BYTES - device.bytes_of(address, PAGE_BYTES).count(VALUE))


def run(settings: Settings) -> dict[str, Any]:
    """What each call answers, what it takes, and what those who have a context find."""
    pages = Pages(settings)
    count = min(PAGES, max(8, settings.total_bytes // 8 // MIB))
    figures: dict[str, Any] = {"pages": count, "context_before": pages.has_context()}
    made: list[int] = []
    fds: list[int] = []
    imported: list[int] = []
    for name, steps in (
        ("create", lambda: made.extend(pages.create(PAGE_BYTES) for _ in range(count))),
        ("export", lambda: fds.extend(map(pages.export, made))),
        ("import", lambda: imported.extend(map(pages.import_page, fds))),
        ("release", lambda: [pages.release(page) for page in imported]),
    ):
        figures[name] = _asked(steps, count)
        if figures[name]["answer"] != pages.cu.name(0):
            return figures | {"context_after": pages.has_context()}
    figures["context_after"] = pages.has_context()
    with partner(handed_on, settings) as other:
        other.give(fds[0])
        figures["context_in_the_process_that_hands_a_page_on"] = other.hear()
    # Nobody has it mapped in between.
    for conversation in (written, read):
        with partner(conversation, settings) as other:
            other.give(fds[0])
            said = other.hear()
    figures["wrong_bytes_in_the_next_process_with_a_context"] = said
    figures["context_at_the_end"] = pages.has_context()
    for fd in fds:
        os.close(fd)
    return figures


def _asked(steps: Callable[[], object], count: int) -> dict[str, Any]:
    answer = "CUDA_SUCCESS"  # of every call

    def make() -> None:
        nonlocal answer
        try:
            steps()
        except CudaError as error:
            answer = str(error)

    taken_us = 1e6 * timed_s(make)
    return {"answer": answer, "us_each": taken_us / count}


def _mapped(connection: Connection, settings: Settings) -> tuple[Device, int]:
    device = Device(settings)
    address = device.reserve(PAGE_BYTES)
    device.map(address, PAGE_BYTES, device.import_page(received(connection)))
    device.access(address, PAGE_BYTES)
    return device, address
