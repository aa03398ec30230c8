"""Pages that a failed scrub keeps from everybody: they come back once the device answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, memory_of, pool_of, resident_model

from gpupool import Pool
from gpupool._core import FaultPlan
from gpupool.errors import DriverError, LeaseTimeoutError
from gpupool.scrubbing import Background

POLICIES = ["never", "on-grant", "background"]


def until(condition: Callable[[], object], what: str) -> None:
    """Poll until a thread of the pool's has got there."""
    end_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not come true"
        time.sleep(0.001)


def withheld(pool: Pool) -> int:
    return pool.statistics().pages.withheld


def fails(use: Callable[[], object]) -> None:
    try:
        use()
    except DriverError as error:
        assert error.status == 999


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_as_large_as_the_pool_comes_back_after_any_fault(policy: str) -> None:
    """From the nth call on all fail, and then none does."""
    nth, injected, seen = 0, 1, set()
    while injected:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan, scrub=policy)
        model = resident_model(pool, "a")
        region = model.regions("weights")[0]

        def use(model=model, region=region) -> None:
            with model.resident(timeout_s=60.0):
                memory_of(region)[:6] = b"secret"
                region.mark_written([(0, 6)])

        plan.arm(nth, 999, persistent=True)
        fails(use)
        injected = plan.injected
        seen.add(withheld(pool))
        plan.disarm()
        use()
        model.swap_out()
        with model.resident(timeout_s=60.0):
            assert bytes(memory_of(region)[:6]) == b"secret"
        pool.close()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    assert nth > 10
    if policy == "on-grant":
        assert BUDGET_PAGES in seen


def withhold_all(pool: Pool, plan: FaultPlan, nth: int) -> int:
    """Free dirty pages and a scrub of them that fails; what is withheld then."""
    scrubbing = pool._scrubbing
    assert isinstance(scrubbing, Background)
    plan.arm(nth, 999, persistent=True)
    scrubber = scrubbing._scrubber
    fails(scrubber.scrub_free)  # as the thread does
    plan.disarm()
    return withheld(pool)


def test_a_lease_waits_for_what_a_scrub_of_free_pages_left() -> None:
    nth, most = 0, 0
    while (nth := nth + 1) < 12:
        plan = FaultPlan()
        pool = pool_of(plan=plan, scrub="background")
        assert pool._scrubbing is not None
        pool._scrubbing.stop()  # its thread, which would be as quick
        pool.create_pages()
        model = resident_model(pool, "a")
        most = max(most, withhold_all(pool, plan, nth))
        with model.resident(timeout_s=60.0):
            assert pool.free_bytes == 0
        pool.close()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    assert most == BUDGET_PAGES


def test_the_thread_tries_again_by_itself() -> None:
    plan = FaultPlan()
    pool = pool_of(plan=plan, scrub="background")
    model = resident_model(pool, "a")
    with model.resident():
        pass
    model.swap_out()
    until(lambda: pool.statistics().pages.clean == BUDGET_PAGES, "clean pages")
    with model.resident():
        pass
    scrubbing = pool._scrubbing
    assert scrubbing is not None
    came_back = scrubbing.came_back
    scrubbing.came_back = lambda: None  # type: ignore[method-assign]
    model.swap_out()
    plan.arm(1, 999, persistent=True)
    came_back()
    until(lambda: withheld(pool) == BUDGET_PAGES, "withheld pages")
    plan.disarm()
    until(lambda: pool.statistics().pages.clean == BUDGET_PAGES, "clean pages again")
    pool.close()


def test_pages_that_stay_withheld_are_what_the_timeout_names() -> None:
    plan = FaultPlan()
    pool = pool_of(plan=plan, scrub="on-grant")
    pool.create_pages()
    model = resident_model(pool, "a")
    plan.arm(1, 999, persistent=True)
    fails(lambda: model.resident().__enter__())
    assert withheld(pool) == BUDGET_PAGES
    with (
        pytest.raises(LeaseTimeoutError, match=f"{BUDGET_PAGES} pages are withheld"),
        model.resident(timeout_s=0.0),
    ):
        pass
    plan.disarm()
    with model.resident(timeout_s=0.0):
        pass
    pool.close()


def test_one_that_waits_already_gets_them_when_the_device_answers_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = FaultPlan()
    pool = pool_of(plan=plan, scrub="on-grant")
    pool.create_pages()
    model = resident_model(pool, "a")
    plan.arm(1, 999, persistent=True)
    fails(lambda: model.resident().__enter__())
    tries = 0
    settle = type(pool._scrubbing).settle  # type: ignore[union-attr]

    def counted(scrubbing: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            plan.disarm()
        settle(scrubbing)  # type: ignore[arg-type]

    monkeypatch.setattr(type(pool._scrubbing), "settle", counted)
    with model.resident(timeout_s=60.0):
        assert tries == 3
    pool.close()


def test_a_resize_that_fails_leaves_the_account_of_a_lease_as_it_was() -> None:
    nth, injected, most = 0, 1, 0
    while injected:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan, scrub="on-grant")
        pool.create_pages()
        model = pool.model("a")
        region = model.region("weights", PAGE_BYTES, capacity_bytes=BUDGET_PAGES * PAGE_BYTES)
        with model.resident():
            plan.arm(nth, 999, persistent=True)
            fails(lambda model=model, region=region: model.resize(region, 3 * PAGE_BYTES))
            injected = plan.injected
            most = max(most, withheld(pool))
            plan.disarm()
            account = pool.statistics().models[0]
            # What could be neither used nor unmapped is held until the next swap-out.
            assert account.held_bytes == account.needed_bytes
            if region.mapped_pages * PAGE_BYTES == region.bytes:
                assert account.needed_bytes == region.bytes
                model.resize(region, BUDGET_PAGES * PAGE_BYTES)
                assert pool.free_bytes == 0
        model.swap_out()
        model.resize(region, BUDGET_PAGES * PAGE_BYTES)
        with model.resident(timeout_s=60.0):
            assert pool.free_bytes == 0
        pool.close()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    assert most == 2


def test_pages_made_ahead_are_scrubbed_in_the_background() -> None:
    pool = pool_of(scrub="background")
    pool.create_pages()
    until(lambda: pool.statistics().pages.clean == BUDGET_PAGES, "clean pages")
    pool.close()


def test_pages_that_slabs_return_are_scrubbed_in_the_background() -> None:
    pool = pool_of(scrub="background")
    slabs = pool.slabs([PAGE_BYTES])
    for _ in range(2):
        handles = [slabs.allocate(1) for _ in range(BUDGET_PAGES)]
        for handle in handles:
            slabs.free(handle)
        slabs.trim()
        until(lambda: pool.statistics().pages.clean == BUDGET_PAGES, "clean pages")
    pool.close()
    assert all(thread.name != "gpupool-scrub" for thread in threading.enumerate())
