"""The objects of the C++ core, on the host device.

The core is imported by those who ask for them: what only reads sources needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpupool._core import Driver, ModelMemory, PagePool

PAGE_BYTES = 2 << 20


@pytest.fixture
def driver() -> Driver:
    from gpupool._core import open_host_driver

    return open_host_driver()


@pytest.fixture
def pool(driver: Driver) -> PagePool:
    from gpupool._core import PagePool

    return PagePool(driver, 4 * PAGE_BYTES, PAGE_BYTES)


@pytest.fixture
def memory(driver: Driver) -> ModelMemory:
    from gpupool._core import ModelMemory

    return ModelMemory(driver, PAGE_BYTES, chunk_bytes=1 << 20)
