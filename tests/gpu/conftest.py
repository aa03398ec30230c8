"""What needs a GPU: skipped where there is none, failed where one is asked for.

``make gpu-check`` asks for one, by GPUPOOL_REQUIRE_GPU=1.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import NoReturn

import pytest

from gpupool import Pool
from gpupool.devices import open_driver
from gpupool.errors import DriverError
from gpupool.pool import MIB

BUDGET_BYTES = 256 * MIB


def missing(what: str) -> NoReturn:
    if os.environ.get("GPUPOOL_REQUIRE_GPU") == "1":
        pytest.fail(what)
    pytest.skip(what)


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing(f"{name} cannot be imported: {error}")


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool on the first GPU, with pages of the smallest size."""
    try:
        driver = open_driver("cuda")
        page_bytes = driver.page_granularity()
        pool = Pool(device="cuda", budget_bytes=BUDGET_BYTES, page_bytes=page_bytes)
        pool.create_pages(1)
    except (DriverError, RuntimeError) as error:
        missing(f"no GPU: {error}")
    yield pool
    pool.close()


@pytest.fixture
def torch() -> ModuleType:
    module = library("torch")
    if not module.cuda.is_available():
        missing("this torch has no CUDA or sees no GPU")
    return module


@pytest.fixture
def triton() -> ModuleType:
    return library("triton")


@pytest.fixture
def cupy() -> ModuleType:
    module = library("cupy")
    try:
        module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as error:
        missing(f"CuPy sees no GPU: {error}")
    return module
