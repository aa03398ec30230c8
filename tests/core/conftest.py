"""The objects of the C++ core, on the host device."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from core_bench import OPEN
from pool_bench import PAGE_BYTES

from gpupool._core import Driver, ModelMemory, PagePool, open_host_driver


@pytest.fixture
def driver() -> Driver:
    return open_host_driver()


@pytest.fixture
def pool(driver: Driver) -> PagePool:
    return PagePool(driver, 4 * PAGE_BYTES, PAGE_BYTES)


@pytest.fixture
def memory(driver: Driver) -> ModelMemory:
    return ModelMemory(driver, PAGE_BYTES, chunk_bytes=1 << 20)


@pytest.fixture(autouse=True)
def close_descriptors() -> Iterator[None]:
    yield
    while OPEN:
        os.close(OPEN.pop())
