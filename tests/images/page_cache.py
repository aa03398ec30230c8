"""How much of a file is in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def cached_pages(path: Path) -> int:
    """Pages of the system that it has there."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        bytes_of = np.frombuffer(memory, np.uint8)
        pages = np.zeros(-(-len(memory) // mmap.PAGESIZE), np.uint8)
        answer = _libc.mincore(
            ctypes.c_void_p(bytes_of.ctypes.data),
            ctypes.c_size_t(len(memory)),
            ctypes.c_void_p(pages.ctypes.data),
        )
        error = ctypes.get_errno()
        del bytes_of  # it looks at the mapping
    if answer:
        raise OSError(error, os.strerror(error))
    return int((pages & 1).sum())


def can_do_without(folder: Path) -> bool:
    """Whether a file there need not be in the page cache: in some file systems it is nowhere else.

    Its pages are what it is kept in, as in tmpfs.
    """
    path = folder / "probe"
    with path.open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return cached_pages(path) == 0
    finally:
        path.unlink()
