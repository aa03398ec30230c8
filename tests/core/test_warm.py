"""Models that keep some of their pages while they are out."""

from __future__ import annotations

import contextlib

import pytest
from gate_bench import thread_running, wait_until
from pool_bench import PAGE_BYTES, memory_of, pool_of
from warm_bench import come, loaded

from gpupool._core import FaultPlan
from gpupool.errors import (
    DamagedMemoryError,
    DriverError,
    LeaseTimeoutError,
)


def test_what_nobody_needs_stays_and_is_not_copied_again() -> None:
    pool = pool_of(6)
    a, b = loaded(pool, "a", 5), loaded(pool, "b", 3)
    come(a, b)
    assert (a.warm_bytes, b.warm_bytes) == (3 * PAGE_BYTES, 0)
    assert [m.held_bytes // PAGE_BYTES for m in pool.statistics().models] == [3, 3]
    come(a)
    assert a.last_swap_in is not None
    assert a.last_swap_in.copied_bytes == 2 * PAGE_BYTES
    assert a.last_swap_in.verified_bytes == 5 * PAGE_BYTES
    assert b.warm_bytes == PAGE_BYTES
    assert b.swap_out() is False
    assert b.warm_bytes == 0
    pool.close()


@pytest.mark.parametrize("at", [0, PAGE_BYTES - 1, 2 * PAGE_BYTES + 5])
def test_a_bit_that_flips_in_a_page_that_stayed_is_put_right_before_a_step(at: int) -> None:
    pool = pool_of(6)
    a, b = loaded(pool, "a", 5), loaded(pool, "b", 3)
    come(a, b)
    memory_of(a.regions("weights")[0])[at] ^= 4
    with a.resident():
        assert memory_of(a.regions("weights")[0])[at] == (ord("a") if at == 0 else 0)
    assert a.last_swap_in is not None
    assert a.last_swap_in.recopied_bytes == PAGE_BYTES
    pool.close()


def test_a_model_whose_image_is_damaged_too_stays_out_and_has_nothing() -> None:
    pool = pool_of(6)
    a, b = loaded(pool, "a", 5), loaded(pool, "b", 3)
    come(a, b)
    region = a.regions("weights")[0]
    memory_of(region)[7] ^= 4
    with memoryview(region.image()) as image:  # type: ignore[arg-type]
        image.cast("B")[7] ^= 2
    for _ in range(2):
        with pytest.raises(DamagedMemoryError, match="model 'a'"):
            come(a)
        assert a.warm_bytes == 0
    come(b)
    pool.close()
    assert pool.free_bytes == 6 * PAGE_BYTES


def test_a_resident_model_grows_into_what_others_keep() -> None:
    pool = pool_of(6)
    a, b = loaded(pool, "a", 5), pool.model("b")
    region = b.region("kv_cache", 2 * PAGE_BYTES, capacity_bytes=6 * PAGE_BYTES)
    come(a)
    with b.resident():
        assert a.warm_bytes == 4 * PAGE_BYTES
        b.resize(region, 5 * PAGE_BYTES)
        assert a.warm_bytes == PAGE_BYTES
    come(a)
    pool.close()


def test_nothing_stays_where_there_are_slabs() -> None:
    pool = pool_of(6)
    a, b = loaded(pool, "a", 5), loaded(pool, "b", 3)
    come(a, b)
    assert a.warm_bytes > 0
    slabs = pool.slabs([4096])
    assert a.warm_bytes == 0
    come(a, b)
    assert a.warm_bytes == 0
    assert slabs.statistics().slabs == 0
    pool.close()


def test_warm_pages_that_the_driver_does_not_let_go_are_not_lost() -> None:
    torn = 0
    for nth in range(1, 12):
        plan = FaultPlan()
        pool = pool_of(4, plan)
        a, b, c = (pool.model(name) for name in "abc")
        for model, pages in ((a, 2), (a, 1), (a, 1), (b, 1), (c, 4)):
            model.region("runtime", pages * PAGE_BYTES)
        for model in (a, b):
            with model.resident():
                pass
        b.swap_out()
        assert a.warm_bytes > 0
        plan.arm(nth, 999, persistent=True)
        with contextlib.suppress(LeaseTimeoutError, DriverError), c.resident(0.02):
            pass
        plan.disarm()
        torn += a._residency.torn
        with c.resident(20.0):
            pass
        for model in (a, b, c):
            model.close()
        assert pool.free_bytes == 4 * PAGE_BYTES
        assert pool.model("a").close() is None
        pool.close()
    assert torn


@pytest.mark.parametrize("again", range(7))
def test_warm_pages_that_went_by_and_by_are_all_given_back(again: int) -> None:
    """A failure tears them, and another lets only some of them go at the next attempt."""
    torn = 0
    for nth in range(1, 7):
        plan = FaultPlan()
        pool = pool_of(6, plan)
        a, b = pool.model("a"), loaded(pool, "b", 1)
        for pages in (3, 1, 2):
            a.region("runtime", pages * PAGE_BYTES)
        with a.resident():
            pass
        come(b)
        a._session.cooled = lambda: None  # type: ignore[method-assign]
        for fails_at in (nth, again):
            if fails_at > 0:
                plan.arm(fails_at, 999, persistent=True, releases=True)
            a.gate.cool(4)
            plan.disarm()
            torn += a._residency.torn
        a.gate.cool(4)
        assert pool.statistics().models[0].held_bytes == a.warm_bytes
        for model in (a, b, a):
            with model.resident():
                pass
        pool.close()
        assert pool.free_bytes == 6 * PAGE_BYTES
    assert torn


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", ["cool", "release"])
def test_an_interrupt_as_warm_pages_go_keeps_the_account(call: str, done: bool) -> None:
    pool = pool_of(6)
    a, b = loaded(pool, "a", 4), loaded(pool, "b", 4)
    come(a, b)
    assert a.warm_bytes > 0
    residency, session = a._residency, a._session
    if call == "cool":
        residency.saved = Interrupted(residency.saved, call, 1, done=done)  # type: ignore
    else:
        session.release = Interrupted(session, call, 1, done=done).release  # type: ignore
    with pytest.raises(KeyboardInterrupt):
        a.region("runtime", PAGE_BYTES)
    assert pool.statistics().models[0].held_bytes == a.warm_bytes
    come(a, b, a)
    pool.close()
    assert pool.free_bytes == 6 * PAGE_BYTES


class Interrupted:
    """Does as another, but for one call that is interrupted: before it, or as it returns."""

    def __init__(self, whole: object, call: str, nth: int, *, done: bool) -> None:
        self._whole, self._call, self.left, self._done = whole, call, nth, done

    def __getattr__(self, name: str) -> object:
        does = getattr(self._whole, name)
        if name != self._call:
            return does

        def call(*args: object, **named: object) -> object:
            self.left -= 1
            if self.left != 0:
                return does(*args, **named)
            if self._done:
                does(*args, **named)
            raise KeyboardInterrupt

        return call


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", ["drain", "swap_out", "release", "give_back"])
@pytest.mark.parametrize("again", ["a", "b"])
def test_an_interrupt_as_pages_go_back_does_not_let_a_step_begin_without_them(
    again: str, call: str, done: bool
) -> None:
    nth = 1
    while leaves_interrupted(again, call, nth, done=done):
        nth += 1
    assert nth > {"drain": 3, "release": 2}.get(call, 1)


def leaves_interrupted(again: str, call: str, nth: int, *, done: bool) -> bool:
    """A model that parts with its weights first; whether there was such an interrupt."""
    pool = pool_of(6)
    a, b = loaded(pool, "a", 4), loaded(pool, "b", 3)
    runtimes = [a.region("runtime", PAGE_BYTES) for _ in range(2)]
    with a.resident():
        for runtime in runtimes:
            memory_of(runtime)[-3:] = b"end"
    residency, session = a._residency, a._session
    in_core = call in ("drain", "swap_out")
    interrupted = Interrupted(residency.saved if in_core else session, call, nth, done=done)
    if in_core:
        residency.saved = interrupted  # type: ignore[assignment]
    else:
        setattr(session, call, getattr(interrupted, call))
    with contextlib.suppress(KeyboardInterrupt):
        come(b)
    was_interrupted, interrupted.left = interrupted.left <= 0, 0
    assert not a.gate.is_resident or residency.resident
    for model in (a, b, a) if again == "a" else (b, a):
        come(model)
    with a.resident():
        assert [bytes(memory_of(runtime)[-3:]) for runtime in runtimes] == [b"end"] * 2
    pool.close()
    assert pool.free_bytes == 6 * PAGE_BYTES
    return was_interrupted


def test_a_swap_out_that_is_told_of_twice_counts_once() -> None:
    pool = pool_of(4)
    a = loaded(pool, "a", 4)
    come(a)
    session = a._session
    session.give_back = Interrupted(session, "give_back", 1, done=True).give_back  # type: ignore
    with pytest.raises(KeyboardInterrupt):
        a.swap_out()
    a.swap_out()
    assert pool.statistics().models[0].swap_outs.swaps == 1
    pool.close()


@pytest.mark.parametrize("done", [False, True])
def test_an_interrupt_as_what_came_in_vain_goes_back_keeps_the_account(done: bool) -> None:
    plan = FaultPlan()
    pool = pool_of(4, plan)
    a, b = loaded(pool, "a", 4), loaded(pool, "b", 2)
    come(b, a)
    a.swap_out()
    session = a._session
    session.give_back = Interrupted(session, "give_back", 1, done=done).give_back  # type: ignore
    plan.arm(3, 999)
    with pytest.raises(KeyboardInterrupt):
        come(a)
    plan.disarm()
    come(b, a, b)
    pool.close()
    assert pool.free_bytes == 4 * PAGE_BYTES


def test_what_a_model_keeps_as_slabs_come_goes_too() -> None:
    pool = pool_of(4)
    a, b = loaded(pool, "a", 4), loaded(pool, "b", 1)
    come(a)
    with a.resident(), thread_running(lambda: come(b)):
        wait_until(lambda: pool._arbiter._arbiter.is_leaving(a._session.key))  # type: ignore[attr-defined]
        slabs = pool.slabs([4096])
        a.gate.close_step(counts=False)
        wait_until(lambda: b.swap_ins == 1)
        a.gate.open_step()
    assert slabs.statistics().slabs == 0
    come(b)
    assert a.warm_bytes == 0
    pool.close()
