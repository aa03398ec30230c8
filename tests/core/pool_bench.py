"""Pools on the host device, whose memory any code can see."""

from __future__ import annotations

import ctypes

from gpupool import Model, Pool
from gpupool._core import FaultPlan, Region, open_host_driver, with_faults

PAGE_BYTES = 2 << 20
BUDGET_PAGES = 4


def pool_of(pages: int = BUDGET_PAGES, plan: FaultPlan | None = None, scrub: str = "never") -> Pool:
    driver = None if plan is None else with_faults(open_host_driver(), plan)
    return Pool(
        device="host",
        budget_bytes=pages * PAGE_BYTES,
        page_bytes=PAGE_BYTES,
        scrub=scrub,
        driver=driver,
    )


def memory_of(region: Region) -> memoryview:
    """The device memory itself, which on the host device any code can see."""
    return memoryview((ctypes.c_uint8 * region.bytes).from_address(region.address)).cast("B")


def resident_model(pool: Pool, name: str, pages: int = BUDGET_PAGES) -> Model:
    model = pool.model(name)
    model.region("weights", pages * PAGE_BYTES)
    return model
