"""Orders inside one process: who is in a step is never kept waiting by those that nobody obeys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pool_bench import BUDGET_PAGES, PAGE_BYTES, pool_of, resident_model
from warm_bench import come, loaded

from gpupool import Model, Pool
from gpupool._core import Region
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
def _in_a_step(pool: Pool) -> Iterator[tuple[Model, Region]]:
    grows = pool.model("grows")
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
        _wait_for(lambda: grows.gate._revokes > 0, thread)
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
            _wait_for(lambda: stays.gate._revokes + goes.gate._revokes > 0, thread)
            asked, other = (stays, goes) if stays.gate._revokes else (goes, stays)
            assert asked is stays, "used first"
        other.swap_out()
        thread.join(_LIMIT_S)
        assert not thread.is_alive() and comes.swap_ins == 1
        assert stays.gate.is_resident and not pool._arbiter._orders.waiting
    with goes.resident():
        assert stays.swap_ins == 1 and stays.gate.is_resident  # nobody needs its pages any more
