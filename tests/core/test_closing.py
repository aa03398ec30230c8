"""What is left of models that are closed, or could not be made: nothing."""

from __future__ import annotations

import gc
import os
import threading

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, pool_of, resident_model

from gpupool import Pool
from gpupool._core import FaultPlan
from gpupool.errors import DriverError, UsageError


def held(pool: Pool) -> tuple[int, int, int, int, int]:
    now = pool.statistics().driver
    return now.registered_bytes, now.reserved_bytes, now.streams, now.mapped_bytes, now.pages


def test_a_closed_model_leaves_nothing_behind_while_it_is_held() -> None:
    pool = pool_of()
    pool.create_pages()
    gc.collect()
    gc.disable()  # its memory goes at once, not when cycles are looked for
    try:
        before, descriptors = held(pool), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        models = []
        for _ in range(3):
            model = resident_model(pool, "a")
            with model.resident(writes=True):
                assert held(pool) != before
            model.close()
            models.append(model)
            assert held(pool) == before
            assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
        assert pool.statistics().models == ()
    finally:
        gc.enable()
    for model in models:
        model.close()
        assert not model.swap_out()
        assert model.footprint_bytes == 0
        assert model.regions("weights") == []
        with pytest.raises(UsageError, match="closed"), model.resident():
            pass
        with pytest.raises(UsageError, match="closed"):
            model.region("weights", 1)
    pool.close()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_closing_the_pool_leaves_nothing_behind() -> None:
    pool = pool_of()
    pool.create_pages()
    before = held(pool)
    models = [resident_model(pool, name) for name in "abc"]
    for model in models:
        with model.resident(writes=True):
            pass
    pool.close()
    assert held(pool) == before
    assert pool.statistics().models == ()


def test_a_tensor_keeps_its_addresses_beyond_the_model() -> None:
    torch = pytest.importorskip("torch")
    pool = pool_of()
    model = pool.model("a")
    tensor = torch.from_dlpack(model.region("weights", PAGE_BYTES))
    model.close()
    assert pool.statistics().driver.reserved_bytes == PAGE_BYTES
    assert pool.statistics().driver.registered_bytes == 0
    del tensor
    gc.collect()
    assert pool.statistics().driver.reserved_bytes == 0


def test_a_model_that_cannot_be_made_leaves_its_name_free() -> None:
    nth, injected = 0, 1
    while injected:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan)
        before = held(pool)
        plan.arm(nth, 2)
        try:
            pool.model("a")
        except DriverError as error:
            assert error.status == 2
            assert pool.statistics().models == ()
            assert held(pool) == before
        injected = plan.injected
        plan.disarm()
        if injected:
            pool.model("a")
        pool.close()
    assert nth > 1


def test_closing_the_pool_closes_every_model_that_can_be() -> None:
    nth, injected, failed = 0, 1, set()
    while injected:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan)
        models = [resident_model(pool, name, pages=1) for name in "abc"]
        for model in models:
            with model.resident(writes=True):
                pass
        plan.arm(nth, 999)
        try:
            pool.close()
        except DriverError as error:
            assert error.status == 999
            (left,) = pool.statistics().models
            failed.add(left.name)
        else:
            assert pool.statistics().models == ()
        injected = plan.injected
        plan.disarm()
        pool.close()
        assert pool.statistics().models == ()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    assert failed == {"a", "b", "c"}


def test_a_pool_whose_models_cannot_leave_stops_its_thread_and_says_the_first_error() -> None:
    plan = FaultPlan()
    pool = pool_of(plan=plan, scrub="background")
    models = [resident_model(pool, name, pages=1) for name in "ab"]
    with models[0].resident(), models[1].resident():
        with pytest.raises(UsageError, match="in whose step it is"):
            pool.close()
        assert all(thread.name != "gpupool-scrub" for thread in threading.enumerate())
    plan.arm(1, 999, persistent=True)
    with pytest.raises(DriverError):
        pool.close()
    assert [model.name for model in pool.statistics().models] == ["a", "b"]
    plan.disarm()
    pool.close()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
