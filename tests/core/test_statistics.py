"""Statistics: every figure is the one that its name says, in a state where no two are alike."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, pool_of, resident_model

from gpupool._core import Driver, FaultPlan, PagePool, Scrubber, SwapReport, with_faults
from gpupool.errors import DriverError
from gpupool.statistics import (
    CallStatistics,
    DriverStatistics,
    PagesStatistics,
    SwapCount,
    SwapStatistics,
)

OUT_OF_MEMORY = 2


def test_each_figure_of_the_pages_is_its_own() -> None:
    now = SimpleNamespace(total=1000, created=600, clean=100, dirty=200, withheld=30, owned=263)
    now.scrubbing = 7
    pages = cast(PagePool, SimpleNamespace(statistics=lambda: now))
    assert PagesStatistics.of(pages) == PagesStatistics(
        total=1000,
        created=600,
        free=707,  # 400 not created, 100 clean, 200 dirty, 7 being scrubbed
        clean=100,
        dirty=200,
        scrubbing=7,
        withheld=30,
        owned=263,
    )


def test_the_pages_of_a_pool_in_every_state(driver: Driver) -> None:
    """Of 20: 2 owned, 3 clean, 1 withheld, 4 dirty, 10 not created."""
    plan = FaultPlan()
    faulty = with_faults(driver, plan)
    pool = PagePool(faulty, 20 * PAGE_BYTES, PAGE_BYTES)
    kept = pool.acquire(1, 2)
    pool.create_ahead(6)
    scrubber = Scrubber(faulty, pool, 3)
    assert scrubber.scrub_free() == 3
    breaking = Scrubber(faulty, pool, 1)
    plan.arm(3, 999, True)  # the fill, and whatever would undo it
    with pytest.raises(DriverError):
        breaking.scrub_free()
    plan.disarm()
    pool.create_ahead(10)
    seen = PagesStatistics.of(pool)
    assert seen == PagesStatistics(
        total=20, created=10, free=17, clean=3, dirty=4, scrubbing=0, withheld=1, owned=2
    )
    assert seen.free == pool.free_pages
    assert breaking.scrub_free() == 1  # takes back what it withheld first
    assert PagesStatistics.of(pool).withheld == 0
    assert pool.owned(1) == sorted(kept)


class FakeObserver:
    def calls(self) -> dict[str, SimpleNamespace]:
        return {
            "fill": SimpleNamespace(calls=11, failures=3, ns=2_500_000_000),
            "map": SimpleNamespace(calls=7, failures=0, ns=1),
        }

    def amounts(self) -> dict[str, int]:
        names = "to_device_bytes to_host_bytes filled_bytes digested_bytes pages reserved_bytes "
        names += "mapped_bytes registered_bytes streams events"
        return {name: 10 + index for index, name in enumerate(names.split())}


def test_calls_are_counted_in_calls_failures_and_seconds() -> None:
    seen = DriverStatistics.of(cast(Driver, SimpleNamespace(observer=FakeObserver())))
    assert seen.calls["fill"] == CallStatistics(calls=11, failures=3, seconds=pytest.approx(2.5))
    assert seen.calls["map"] == CallStatistics(calls=7, failures=0, seconds=pytest.approx(1e-9))
    assert (seen.to_device_bytes, seen.to_host_bytes, seen.filled_bytes) == (10, 11, 12)
    assert (seen.digested_bytes, seen.pages, seen.reserved_bytes) == (13, 14, 15)
    assert (seen.mapped_bytes, seen.registered_bytes, seen.streams, seen.events) == (16, 17, 18, 19)


@pytest.mark.parametrize("seed", range(5))
def test_failures_are_counted_by_call(seed: int) -> None:
    """As often as the plan failed one, and under the name that the error has."""
    chance = random.Random(seed)
    plan = FaultPlan()
    pool = pool_of(plan=plan)
    models = [resident_model(pool, name, 3) for name in "ab"]
    expected: dict[str, int] = {}
    for _ in range(20):
        plan.arm(chance.randint(1, 12), OUT_OF_MEMORY)
        try:
            with chance.choice(models).resident():
                pass
        except DriverError as error:
            assert error.status == OUT_OF_MEMORY
            expected[error.call] = expected.get(error.call, 0) + plan.injected
        plan.disarm()
    calls = pool.statistics().driver.calls
    assert {name: call.failures for name, call in calls.items() if call.failures} == expected
    assert sum(expected.values()) > 5
    for call in calls.values():
        assert call.failures <= call.calls
        assert (call.seconds > 0) == (call.calls > 0)
    pool.close()


def test_swaps_add_up_figure_by_figure() -> None:
    count = SwapCount()
    assert count.statistics() == SwapStatistics(0, 0.0, 0, 0)
    names = "total_s copied_bytes filled_bytes recopied_bytes audited_bytes unmarked_bytes "
    names += "moving_s ahead_bytes ahead_s"
    for figures in (
        (0.5, 10, 3, 1, 40, 5, 0.125, 7, 0.0625),
        (0.25, 20, 4, 0, 50, 6, 0.25, 8, 0.03125),
    ):
        report = SimpleNamespace(copy_s=99.0, **dict(zip(names.split(), figures, strict=True)))
        count.add(cast(SwapReport, report))
    assert count.statistics() == SwapStatistics(
        swaps=2,
        seconds=0.75,
        copied_bytes=30,
        filled_bytes=7,
        recopied_bytes=1,
        audited_bytes=90,
        unmarked_bytes=11,
        moving_seconds=0.375,
        ahead_bytes=15,
        ahead_seconds=0.09375,
    )


def test_a_model_holds_what_it_has_and_needs_what_it_asked_for() -> None:
    pool = pool_of()
    model = resident_model(pool, "a", 3)
    assert (pool.statistics().models[0].held_bytes, pool.statistics().models[0].needed_bytes) == (
        0,
        0,
    )
    with model.resident():
        now = pool.statistics()
        assert (now.models[0].held_bytes, now.models[0].needed_bytes) == (3 * PAGE_BYTES,) * 2
        assert now.page_bytes == PAGE_BYTES
        assert now.pages == PagesStatistics(
            total=BUDGET_PAGES,
            created=3,
            free=1,
            clean=0,
            dirty=0,
            scrubbing=0,
            withheld=0,
            owned=3,
        )
    model.swap_out()
    now = pool.statistics()
    assert (now.models[0].held_bytes, now.models[0].needed_bytes) == (0, 3 * PAGE_BYTES)
    assert (now.models[0].swap_ins.swaps, now.models[0].swap_outs.swaps) == (1, 1)
    assert now.pages.dirty == 3
    pool.close()
