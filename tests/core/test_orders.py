"""Orders inside one process: who is in a step is never kept waiting by those that nobody obeys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, pool_of, resident_model
from warm_bench import come, loaded

from gpupool import Model, Pool
from gpupool._core import Region
from gpupool.errors import SwapCancelledError
from gpupool.schedule.turns import Revoke

_LIMIT_S = 30.0


def _one_page_warm(pool: Pool) -> Model:
    warm = loaded(pool, "w", 2)
    come(warm)
    other = resident_model(pool, "other", BUDGET_PAGES - 1)
    come_and_go(other)
    assert warm.warm_bytes == PAGE_BYTES
    return warm


def come_and_go(model: Model) -> None:
    with model.resident():
        pass
    model.swap_out()


@contextmanager
def _in_a_step(pool: Pool, name: str = "grows") -> Iterator[tuple[Model, Region]]:
    grows = pool.model(name)
    region = grows.region("weights", PAGE_BYTES, capacity_bytes=BUDGET_PAGES * PAGE_BYTES)
    with grows.resident():
        yield grows, region


def _decide_that_warm_pages_are_needed(pool: Pool, grows: Model) -> None:
    """As a thread does that has its own pages by then, and goes on to use them."""
    arbiter = pool._arbiter
    with arbiter._changed:
        cools = arbiter._arbiter.make_room(grows._session.key, BUDGET_PAGES - 1, time.monotonic())
        assert cools
        arbiter._orders.waiting += cools


def _wait_for(what: Callable[[], bool], thread: threading.Thread) -> None:
    until_s = time.monotonic() + _LIMIT_S
    while not what() and time.monotonic() < until_s:
        thread.join(0.001)
    assert what()


def test_a_model_that_grows_sees_to_what_it_waits_for() -> None:
    pool = pool_of()
    warm = _one_page_warm(pool)
    with _in_a_step(pool) as (grows, _):
        _decide_that_warm_pages_are_needed(pool, grows)
        thread = threading.Thread(
            target=lambda: pool._arbiter.extend(grows._session.key, BUDGET_PAGES - 1), daemon=True
        )
        thread.start()
        thread.join(_LIMIT_S)
        assert not thread.is_alive()
        assert warm.warm_bytes == 0


def test_who_has_a_model_leave_sees_to_warm_pages_first() -> None:
    pool = pool_of()
    warm = _one_page_warm(pool)
    other = resident_model(pool, "third", BUDGET_PAGES)
    with _in_a_step(pool) as (grows, region):
        arbiter, key = pool._arbiter, grows._session.key
        with arbiter._changed:
            arbiter._arbiter.revoke(key, time.monotonic())
            arbiter._orders.waiting.append(Revoke(key))
        _decide_that_warm_pages_are_needed(pool, grows)
        thread = threading.Thread(target=lambda: come_and_go(other), daemon=True)
        thread.start()
        _wait_for(lambda: grows.gate._revokes.count > 0, thread)
        assert warm.warm_bytes == 0
        grows.resize(region, BUDGET_PAGES * PAGE_BYTES)
    thread.join(_LIMIT_S)
    assert not thread.is_alive()


def test_who_has_its_pages_waits_for_nobody_to_leave() -> None:
    pool = pool_of()
    stays, goes, comes = (resident_model(pool, name, 2) for name in ("stays", "goes", "comes"))
    thread = threading.Thread(target=lambda: come_and_go(comes), daemon=True)
    with stays.resident():
        with goes.resident():
            thread.start()
            _wait_for(lambda: stays.gate._revokes.count + goes.gate._revokes.count > 0, thread)
            asked, other = (stays, goes) if stays.gate._revokes.count else (goes, stays)
            assert asked is stays, "used first"
        other.swap_out()
        thread.join(_LIMIT_S)
        assert not thread.is_alive() and comes.swap_ins == 1
        assert stays.gate.is_resident and not pool._arbiter._orders.waiting
    with goes.resident():
        assert stays.swap_ins == 1 and stays.gate.is_resident  # nobody needs its pages any more


def _thread_of(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_a_prefetch_that_is_not_wanted_any_more_waits_for_no_step() -> None:
    pool = pool_of()
    used, later = resident_model(pool, "used"), resident_model(pool, "later")

    def fetch() -> None:
        with pytest.raises(SwapCancelledError):
            later.prefetch()
        cancelled.append(True)

    cancelled: list[bool] = []
    with used.resident():
        fetching = _thread_of(fetch)
        _wait_for(lambda: used.gate._revokes.count > 0, fetching)
        leaving = _thread_of(later.swap_out)  # as this thread may do, in a step of the other model
        leaving.join(_LIMIT_S)
        assert not leaving.is_alive()
    fetching.join(_LIMIT_S)
    assert cancelled
    assert not pool._arbiter._arbiter.is_leaving(used._session.key)
    assert used.gate.is_resident and not pool._arbiter._orders.waiting


def test_nobody_is_left_leaving_for_somebody_who_waits_no_more() -> None:
    pool = pool_of()
    stays, small = resident_model(pool, "stays", 2), resident_model(pool, "small", 1)
    with stays.resident():
        pass
    arbiter, key = pool._arbiter, stays._session.key
    with arbiter._changed:  # as for a thread that got its pages otherwise meanwhile
        arbiter._arbiter.revoke(key, time.monotonic())
        arbiter._orders.waiting.append(Revoke(key))
    with small.resident():
        assert not arbiter._orders.waiting
        assert not arbiter._arbiter.is_leaving(key)


def test_of_two_that_grow_each_has_warm_pages_of_its_own_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = pool_of(6)
    warm = loaded(pool, "w", 4)
    come(warm)
    come_and_go(resident_model(pool, "other", 3))
    assert warm.warm_bytes == 3 * PAGE_BYTES
    both, cool = threading.Event(), warm.gate.cool

    def slowly(pages: int) -> None:
        assert both.wait(_LIMIT_S)
        cool(pages)

    monkeypatch.setattr(warm.gate, "cool", slowly)
    with _in_a_step(pool, "one") as one, _in_a_step(pool, "two") as two:
        threads = [
            _thread_of(lambda of=of: of[0].resize(of[1], 3 * PAGE_BYTES)) for of in (one, two)
        ]
        _wait_for(lambda: pool._arbiter._extending == 2, threads[0])
        both.set()
        for thread in threads:
            thread.join(_LIMIT_S)
            assert not thread.is_alive()
        assert [of[1].bytes for of in (one, two)] == [3 * PAGE_BYTES] * 2
    assert warm.warm_bytes == 0


def test_who_has_its_pages_is_not_told_that_it_is_in_a_step_of_another() -> None:
    pool = pool_of()
    goes = pool.model("goes", before_swap_out=lambda: busy.swap_out())
    goes.region("weights", PAGE_BYTES)
    used, busy = resident_model(pool, "used", 2), resident_model(pool, "busy", 1)
    comes = resident_model(pool, "comes", 2)
    for model in (goes, busy):
        with model.resident():
            pass
    busy.gate.set_idle(False)  # so that it is asked last, but leaves by itself
    with used.resident(), comes.resident():
        assert used.gate.is_resident and not goes.gate.is_resident
    assert used.swap_ins == 1
