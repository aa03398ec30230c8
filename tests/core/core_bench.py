"""Descriptors that are closed after a test, and models of the core that come and go."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gpupool._core import ModelMemory, PagePool, Region

OPEN: list[int] = []


@contextmanager
def descriptor(fd: int) -> Iterator[int]:
    yield fd
    os.close(fd)


def memfd(size_bytes: int) -> int:
    fd = os.memfd_create("test")
    os.ftruncate(fd, size_bytes)
    OPEN.append(fd)
    return fd


@contextmanager
def resident(pool: PagePool, memory: ModelMemory, owner: int = 1) -> Iterator[None]:
    pages = pool.acquire(owner, memory.pages_needed)
    memory.swap_in([pool.page(page) for page in pages])
    yield
    memory.swap_out()
    pool.give_back(owner, pages)


def device_bytes(region: Region) -> memoryview:
    return memoryview((ctypes.c_uint8 * region.bytes).from_address(region.address)).cast("B")
