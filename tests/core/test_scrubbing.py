"""Free pages that a thread zeroes: that it does, when it does, and when it ends."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, memory_of, pool_of

from gpupool import Model, Pool
from gpupool._core import Driver, FaultPlan, PagePool, with_faults
from gpupool.scrubbing import scrubbing
from gpupool.statistics import PagesStatistics

FILL = 3  # of one page: map, set_access, fill


def until(condition: Callable[[], object]) -> None:
    """Poll until it holds; fail at a deadline that only a broken program meets."""
    end_s = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def pages_of(
    created: int, *, clean: int = 0, withheld: int = 0, owned: int = 0, total: int = BUDGET_PAGES
) -> PagesStatistics:
    """What there is when no page is being scrubbed."""
    return PagesStatistics(
        total=total,
        created=created,
        free=total - withheld - owned,
        clean=clean,
        dirty=created - clean - withheld - owned,
        scrubbing=0,
        withheld=withheld,
        owned=owned,
    )


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "gpupool-scrub"}


def model_of(pool: Pool, pages: int) -> Model:
    model = pool.model("a")
    model.region("workspace", pages * PAGE_BYTES)
    return model


def test_pages_that_come_back_are_zeroed_by_the_thread() -> None:
    pool = pool_of(scrub="background")
    model = model_of(pool, 3)
    for round_ in range(3):
        with model.resident():
            # What the thread has zeroed a swap-in need not; fresh pages it has not seen.
            assert model.last_swap_in is not None
            assert model.last_swap_in.filled_bytes == (0 if round_ else 3 * PAGE_BYTES)
            (region,) = model.regions("workspace")
            assert memory_of(region) == bytes(region.bytes)
            memory_of(region)[:] = b"x" * region.bytes
            assert pool.statistics().pages == pages_of(3, owned=3)
        model.swap_out()
        until(lambda: pool.statistics().pages == pages_of(3, clean=3))
    pool.close()


@pytest.mark.parametrize("tag", ["weights", "runtime", "cudagraph"])
@pytest.mark.parametrize("verify", ["always", "sample"])
def test_a_clean_page_that_went_bad_reads_as_zeros(tag: str, verify: str) -> None:
    pool = pool_of(scrub="background")
    pool.create_pages(3)
    with model_of(pool, 1).resident():
        pass
    until(lambda: pool.statistics().pages == pages_of(3, clean=2, owned=1))
    for page in range(3):
        fd = pool._pages.page(page).export_fd()
        os.pwrite(fd, b"\1", 77)
        os.close(fd)
    model = pool.model("b", verify=verify)
    region = model.region(tag, 2 * PAGE_BYTES)
    with model.resident():
        assert memory_of(region) == bytes(region.bytes)
    pool.close()


def test_pages_that_a_region_gives_back_are_zeroed_too() -> None:
    pool = pool_of(scrub="background")
    model = pool.model("a")
    region = model.region("workspace", 3 * PAGE_BYTES)
    with model.resident():
        memory_of(region)[:] = b"x" * region.bytes
        model.resize(region, 1)
        until(lambda: pool.statistics().pages == pages_of(3, clean=2, owned=1))
        model.resize(region, 2 * PAGE_BYTES)
        assert memory_of(region)[PAGE_BYTES:] == bytes(PAGE_BYTES)
        assert pool.statistics().pages == pages_of(3, clean=1, owned=2)
    pool.close()


def test_without_the_policy_pages_stay_as_they_are() -> None:
    for scrub, clean in (("never", 0), ("on-grant", 0)):
        before = threads()
        pool = pool_of(scrub=scrub)
        model = model_of(pool, 2)
        with model.resident():
            assert pool.statistics().pages == pages_of(2, owned=2)
        model.swap_out()
        assert pool.statistics().pages == pages_of(2, clean=clean)
        assert threads() == before
        pool.close()


def test_the_thread_ends_when_the_pool_is_closed() -> None:
    before = threads()
    pool = pool_of(scrub="background")
    (thread,) = threads() - before
    with model_of(pool, 1).resident():
        pass
    assert thread.is_alive()
    pool.close()
    assert not thread.is_alive()
    pool.close()


def test_the_thread_ends_with_a_pool_that_nobody_closed() -> None:
    before = threads()
    pool = pool_of(scrub="background")
    (thread,) = threads() - before
    del pool
    gc.collect()
    thread.join(30.0)
    assert not thread.is_alive()


@pytest.mark.parametrize("pages", [1, 3])
def test_nothing_is_zeroed_before_pages_came_back_nor_after_the_stop(
    driver: Driver, pages: int
) -> None:
    pool = PagePool(driver, pages * PAGE_BYTES, PAGE_BYTES)
    background = scrubbing("background", driver, pool)
    assert background is not None
    pool.create_ahead(pages)
    assert PagesStatistics.of(pool) == pages_of(pages, total=pages)
    background.came_back()
    until(lambda: PagesStatistics.of(pool) == pages_of(pages, clean=pages, total=pages))
    pool.give_back(1, pool.acquire(1, pages))
    background.stop()
    background.came_back()
    background.stop()
    assert PagesStatistics.of(pool) == pages_of(pages, total=pages)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_failure_is_said_and_the_thread_goes_on(
    driver: Driver, persistent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    plan = FaultPlan()
    faulty = with_faults(driver, plan)
    pool = PagePool(faulty, PAGE_BYTES, PAGE_BYTES)
    background = scrubbing("background", faulty, pool)
    assert background is not None
    pool.create_ahead(1)
    plan.arm(FILL, 999, persistent)
    with caplog.at_level(logging.WARNING, "gpupool"):
        background.came_back()
        until(lambda: caplog.records)
    assert "could not be scrubbed: fill failed" in caplog.records[0].getMessage()
    # With a device that fails for good nobody knows whether the page is still written to.
    assert PagesStatistics.of(pool) == pages_of(1, withheld=int(persistent), total=1)
    plan.disarm()
    background.came_back()
    until(lambda: PagesStatistics.of(pool) == pages_of(1, clean=1, total=1))
    background.stop()
