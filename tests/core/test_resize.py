"""Regions that change size, and pages that are scrubbed, when things go wrong."""

from __future__ import annotations

import threading

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, memory_of, pool_of, resident_model

from gpupool import Model, Pool
from gpupool._core import FaultPlan, Region
from gpupool.errors import DriverError, PoolFullError, SwapCancelledError, UsageError


def growing(pool: Pool, name: str = "a", tag: str = "kv_cache") -> tuple[Model, Region]:
    model = pool.model(name)
    return model, model.region(tag, PAGE_BYTES, capacity_bytes=BUDGET_PAGES * PAGE_BYTES)


def test_a_region_of_another_model_is_refused() -> None:
    pool = pool_of()
    model, _ = growing(pool)
    _, theirs = growing(pool, "b")
    with pytest.raises(UsageError, match="no region of model 'a'"):
        model.resize(theirs, 1)


def test_a_region_can_be_removed_while_its_model_is_out() -> None:
    pool = pool_of()
    model, region = growing(pool)
    _, theirs = growing(pool, "b")
    kept = model.region("weights", PAGE_BYTES)
    with pytest.raises(UsageError, match="no region of model 'a'"):
        model.remove_region(theirs)
    with model.resident(), pytest.raises(UsageError, match="while its model is out"):
        model.remove_region(region)
    model.swap_out()
    model.remove_region(region)
    with pytest.raises(UsageError, match="no region"):
        model.remove_region(region)
    assert model.regions("kv_cache") == []
    with model.resident():
        assert pool.free_bytes == (BUDGET_PAGES - 1) * PAGE_BYTES
        assert kept.mapped_pages == 1
        with pytest.raises(UsageError, match="was removed"):
            _ = region.mapped_pages


def test_sizes_beyond_the_capacity_are_refused_saying_what_to_do() -> None:
    model, region = growing(pool_of())
    for size_bytes in (0, -1, region.capacity_bytes + 1):
        with pytest.raises(UsageError, match="capacity_bytes"):
            model.resize(region, size_bytes)
    with pytest.raises(UsageError, match="at least one byte"):
        model.region("weights", 0)


def test_a_resident_model_takes_free_pages_only() -> None:
    pool = pool_of()
    other = resident_model(pool, "b", 2)
    model, region = growing(pool)
    with other.resident(), model.resident():
        with pytest.raises(PoolFullError, match="asked for 2 pages more and 1 are free"):
            model.resize(region, 3 * PAGE_BYTES)
        model.resize(region, 2 * PAGE_BYTES)
        assert pool.free_bytes == 0
    assert other.gate.is_resident


def test_what_was_resized_in_a_step_is_the_next_footprint() -> None:
    pool = pool_of()
    model, region = growing(pool)
    with model.resident():
        model.resize(region, 3 * PAGE_BYTES)
        memory_of(region)[:] = b"x" * region.bytes
        region.mark_written([(0, region.bytes)])
    model.swap_out()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    with model.resident():
        assert memory_of(region) == b"x" * region.bytes
        assert pool.free_bytes == PAGE_BYTES
        model.resize(region, 10)
        assert pool.free_bytes == (BUDGET_PAGES - 1) * PAGE_BYTES


def test_an_open_tensor_keeps_its_address() -> None:
    torch = pytest.importorskip("torch")
    model, region = growing(pool_of())
    tensor = torch.from_dlpack(region)
    with model.resident(writes=True):
        model.resize(region, 4 * PAGE_BYTES)
        tensor.fill_(7)
        whole = torch.from_dlpack(region)
        assert whole.data_ptr() == tensor.data_ptr()
        assert int(whole.sum()) == 7 * PAGE_BYTES


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("size_pages", [1, 4])
def test_every_call_of_a_resize_may_fail(size_pages: int, persistent: bool) -> None:
    nth = 0
    still_mapped = set()
    while True:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan)
        model, region = growing(pool)
        with model.resident():
            model.resize(region, 2 * PAGE_BYTES)
            memory_of(region)[:] = b"y" * region.bytes
            region.mark_written([(0, region.bytes)])
            plan.arm(nth, 2, persistent)
            try:
                model.resize(region, size_pages * PAGE_BYTES)
                failed = False
            except DriverError:
                failed = True
            injected = plan.injected
            plan.disarm()
            assert region.bytes == (2 if failed else size_pages) * PAGE_BYTES
            # No page is free that is still mapped: then what was granted stays until the swap-out.
            mapped = region.mapped_pages
            held = size_pages if mapped > 2 else mapped
            assert pool.free_bytes == (BUDGET_PAGES - held) * PAGE_BYTES
            if failed:
                still_mapped.add(mapped)
        model.swap_out()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
        with model.resident():
            expected = (b"y" * 2 * PAGE_BYTES)[: region.bytes]
            assert memory_of(region) == expected + bytes(region.bytes - len(expected))
            model.resize(region, 4 * PAGE_BYTES)
        pool.close()
        if injected == 0:
            break
    # Only a device that fails for good leaves pages mapped: one of the two, or both.
    assert still_mapped == ({2, 3, 4} if size_pages == 4 and persistent else {2})


def test_threads_resize_while_others_want_the_memory() -> None:
    pool = pool_of()
    errors: list[BaseException] = []

    def breathe(name: str) -> None:
        try:
            model, region = growing(pool, name)
            for turn in range(1, 40):
                with model.resident(timeout_s=60.0):
                    try:
                        model.resize(region, (1 + turn % 3) * PAGE_BYTES)
                    except PoolFullError:
                        model.resize(region, PAGE_BYTES // turn)
                    assert memory_of(region)[0] in (0, ord(name))
                    memory_of(region)[0] = ord(name)
                    region.mark_written([(0, 1)])
                if turn % 4 == 0:
                    model.swap_out()
                    model.resize(region, 2 * PAGE_BYTES)  # out, which needs no page
            model.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=breathe, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_an_unknown_scrubbing_policy_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'never', 'on-grant' or 'background'"):
        pool_of(scrub="always")


def test_pages_scrubbed_on_grant_are_not_zeroed_again() -> None:
    pool = pool_of(scrub="on-grant")
    model, _ = growing(pool)
    with model.resident():
        assert model.last_swap_in is not None
        assert model.last_swap_in.filled_bytes == 0
    assert pool_of().free_bytes == BUDGET_PAGES * PAGE_BYTES


@pytest.mark.parametrize("persistent", [False, True])
def test_every_call_of_a_scrubbed_swap_in_may_fail(persistent: bool) -> None:
    nth = 0
    while True:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan, scrub="on-grant")
        model, region = growing(pool)
        plan.arm(nth, 999, persistent)
        try:
            with model.resident():
                pass
        except DriverError:
            pass
        injected = plan.injected
        plan.disarm()
        for _ in range(2):  # the first takes back what was withheld
            with model.resident():
                assert memory_of(region) == bytes(PAGE_BYTES)
            model.swap_out()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
        pool.close()
        if injected == 0:
            return


def test_pages_can_be_made_ahead() -> None:
    pool = pool_of()

    def created() -> tuple[int, int]:
        now = pool.statistics()
        assert now.pages.free == BUDGET_PAGES
        return now.pages.created, now.driver.calls["page_create"].calls

    assert created() == (0, 0)
    for count, expected in ((2, 2), (1, 2), (0, 2), (3, 3), (None, BUDGET_PAGES)):
        pool.create_pages(count)
        assert created() == (expected, expected)
    with pytest.raises(UsageError, match="5 pages"):
        pool.create_pages(BUDGET_PAGES + 1)
    with resident_model(pool, "a").resident():
        assert pool.statistics().driver.calls["page_create"].calls == BUDGET_PAGES


def test_pages_made_before_a_failure_stay() -> None:
    plan = FaultPlan()
    pool = pool_of(plan=plan)
    plan.arm(3, 2)
    with pytest.raises(DriverError):
        pool.create_pages()
    assert pool.statistics().pages.created == 2
    pool.create_pages()
    assert pool.statistics().pages.created == BUDGET_PAGES


def test_a_swap_in_is_cancelled() -> None:
    from gpupool._core import Cancellation, ModelMemory, PagePool, Tag, open_host_driver

    driver = open_host_driver()
    pages = PagePool(driver, PAGE_BYTES, PAGE_BYTES)
    memory = ModelMemory(driver, PAGE_BYTES)
    region = memory.add_region(Tag.weights, PAGE_BYTES)
    region.adopt_image()
    page = pages.page(pages.acquire(1, 1)[0])
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(SwapCancelledError):
        memory.swap_in([page], cancellation=cancellation)
    assert not memory.resident
    memory.swap_in([page], cancellation=Cancellation())
    assert memory.resident
    memory.swap_out()
