"""What pages cost by their size: to make, export, import, map, give access to, unmap, let go."""

from __future__ import annotations

import os
import resource
from multiprocessing.connection import Connection
from typing import Any

from gpu_probe.device import GIB, MIB, Device, Settings
from gpu_probe.partner import partner, say, send_descriptor
from gpu_probe.timing import each, timed_s

PAGE_SIZES = (2 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)


def maker(connection: Connection, settings: Settings) -> None:
    """Make pages, say what it took, and hand them out."""
    _allow_descriptors()
    device = Device(settings)
    while True:
        _make(connection, device, *connection.recv())


def _make(connection: Connection, device: Device, page_bytes: int, count: int) -> None:
    pages: list[int] = []
    fds: list[int] = []
    create_s = timed_s(lambda: pages.extend(device.create(page_bytes) for _ in range(count)))
    export_s = timed_s(lambda: fds.extend(device.export(page) for page in pages))
    say(connection, (create_s, export_s))
    for fd in fds:
        send_descriptor(connection, fd)
        os.close(fd)
    connection.recv()  # the other has imported and unmapped them
    say(connection, timed_s(lambda: each(device.release, pages)))


def run(settings: Settings) -> dict[str, Any]:
    """Milliseconds per GiB of pages that another process made; nothing else runs."""
    _allow_descriptors()
    device = Device(settings)
    figures: dict[str, Any] = {}
    with partner(maker, settings) as other:
        sizes = [size for size in PAGE_SIZES if size <= settings.total_bytes // 2]
        for page_bytes in (*sizes[:1], *sizes):  # the first round fills the driver's own tables
            count = settings.total_bytes // page_bytes
            create_s, export_s = other.ask((page_bytes, count))
            taken_s = {"create": create_s, "export": export_s}
            taken_s |= _of_imported(device, page_bytes, [other.descriptor() for _ in range(count)])
            taken_s["release_by_creator"] = other.ask("done")
            per_gib = 1e3 / (count * page_bytes / GIB)
            row: dict[str, Any] = {f"{key}_ms_gib": s * per_gib for key, s in taken_s.items()}
            figures[f"page_{page_bytes // MIB}_mib"] = row | {"pages": count}
    return figures


def _of_imported(device: Device, page_bytes: int, fds: list[int]) -> dict[str, float]:
    pages: list[int] = []
    size = len(fds) * page_bytes
    address = device.reserve(size)
    places = range(address, address + size, page_bytes)
    sizes = [page_bytes] * len(fds)

    taken_s = {
        "import": timed_s(lambda: pages.extend(device.import_page(fd) for fd in fds)),
        "map": timed_s(lambda: each(device.map, places, sizes, pages)),
        "access_in_one_call": timed_s(lambda: device.access(address, size)),
        "unmap_in_one_call": timed_s(lambda: device.unmap(address, size)),
        "map_again": timed_s(lambda: each(device.map, places, sizes, pages)),
        "access_page_by_page": timed_s(lambda: each(device.access, places, sizes)),
        "unmap_page_by_page": timed_s(lambda: each(device.unmap, places, sizes)),
        "release_of_imported": timed_s(lambda: each(device.release, pages)),
    }
    for fd in fds:
        os.close(fd)
    device.cu("cuMemAddressFree", address, size)
    return taken_s


def _allow_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
