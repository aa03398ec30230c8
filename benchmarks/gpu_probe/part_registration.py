"""What it costs to pin host memory, by what kind it is and by how much in one call."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import Any

from gpu_probe.device import GIB, MIB, Device, Settings
from gpu_probe.timing import each, timed_s

PIECE_BYTES = 64 * MIB


def _anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _huge(size: int) -> mmap.mmap:
    memory = _anonymous(size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _shared(size: int) -> mmap.mmap:
    fd = os.memfd_create("gpupool-probe", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    return memory


def _shared_huge(size: int) -> mmap.mmap:
    memory = _shared(size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


KINDS = {"anonymous": _anonymous, "huge": _huge, "memfd": _shared, "memfd_huge": _shared_huge}


def run(settings: Settings) -> dict[str, Any]:
    """Milliseconds per GiB."""
    device = Device(settings)
    size = min(settings.total_bytes, GIB)
    figures: dict[str, Any] = {}
    for name, make, touched, piece in _cases(size):
        figures[name] = _case(device, make(size), touched, piece)
    return figures


def _case(device: Device, memory: mmap.mmap, touched: bool, piece: int) -> dict[str, Any]:
    address, size = ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory)
    per_gib = 1e3 / (size / GIB)
    places = range(address, address + size, piece)
    row: dict[str, Any] = {"pieces": len(places)}
    if touched:
        row["touch_ms_gib"] = per_gib * timed_s(lambda: ctypes.memset(address, 1, size))
    register_s = timed_s(lambda: each(device.register, places, [piece] * len(places)))
    row["register_ms_gib"] = per_gib * register_s
    row["unregister_ms_gib"] = per_gib * timed_s(lambda: each(device.unregister, places))
    return row


def _cases(size: int) -> Iterator[tuple[str, Any, bool, int]]:
    piece = min(size, PIECE_BYTES)
    for kind, make in KINDS.items():
        yield f"{kind}_touched_in_one_call", make, True, size
        yield f"{kind}_touched_in_pieces", make, True, piece
        yield f"{kind}_untouched", make, False, size
