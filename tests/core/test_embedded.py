"""The arbiter of one process, where an answer and the end of its wait cross."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, memory_of, pool_of

from gpupool._core import Driver, FaultPlan, PagePool
from gpupool.embedded import EmbeddedArbiter, EmbeddedSession
from gpupool.errors import DriverError, LeaseTimeoutError
from gpupool.host_budget.place import HostBudget


class Holder:
    """Gives its memory up the way the test says."""

    used_s = 0.0

    def __init__(self, give_up: Callable[[], bool]) -> None:
        self._give_up = give_up

    def give_up(self, *_: object) -> bool:
        return self._give_up()


def joined(arbiter: EmbeddedArbiter, name: str, pages: int) -> EmbeddedSession:
    session = arbiter.add(name)
    session.bind(Holder(lambda: False))
    session.declare(pages, 0, 0)
    return session


@pytest.mark.parametrize("error", [LeaseTimeoutError, KeyboardInterrupt])
def test_a_grant_that_crosses_the_end_of_its_wait_goes_back(
    driver: Driver, error: type[BaseException]
) -> None:
    """While the one that asks still sees to a revoke, another's decision grants it the pages."""
    pages = PagePool(driver, BUDGET_PAGES * PAGE_BYTES, PAGE_BYTES)
    arbiter = EmbeddedArbiter(driver, pages, None, HostBudget())
    first = joined(arbiter, "first", BUDGET_PAGES)
    asking = joined(arbiter, "asking", BUDGET_PAGES - 1)
    other = joined(arbiter, "other", 1)
    first.acquire(60.0)
    crossed = []

    def leave_late() -> bool:
        first.give_back(None)
        assert len(other.acquire(60.0).pages) == 1  # which decides about all that ask
        crossed.append(pages.free_pages)
        raise error("out of time")

    first.bind(Holder(leave_late))
    with pytest.raises(error):
        asking.acquire(60.0)
    assert crossed == [0]  # the one that asks had been granted the rest
    assert pages.free_pages == BUDGET_PAGES - 1
    assert [(m.name, m.held_bytes) for m in arbiter.statistics()] == [
        ("first", 0),
        ("asking", 0),
        ("other", PAGE_BYTES),
    ]
    assert len(asking.acquire(60.0).pages) == BUDGET_PAGES - 1  # and may ask again
    for session in (asking, other):
        session.give_back(None)
    for session in (first, asking, other):
        session.close()
    assert pages.free_pages == BUDGET_PAGES


def test_every_call_of_an_extension_that_is_scrubbed_may_fail() -> None:
    failures, nth, injected = 0, 0, 1
    while injected:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan, scrub="on-grant")
        model = pool.model("a")
        region = model.region("kv_cache", PAGE_BYTES, capacity_bytes=BUDGET_PAGES * PAGE_BYTES)
        with model.resident():
            plan.arm(nth, 2)
            try:
                model.resize(region, 3 * PAGE_BYTES)
            except DriverError:
                failures += 1
                now = pool.statistics()
                assert (now.pages.owned, now.pages.withheld, now.pages.free) == (1, 0, 3)
                assert now.models[0].held_bytes == now.models[0].needed_bytes == PAGE_BYTES
            injected = plan.injected
            plan.disarm()
            model.resize(region, 3 * PAGE_BYTES)
            assert memory_of(region) == bytes(region.bytes)
            assert pool.statistics().models[0].held_bytes == 3 * PAGE_BYTES
        pool.close()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    assert failures >= 8  # two pages made, mapped and zeroed, then mapped by the model
