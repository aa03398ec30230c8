"""Models that come in before they are used."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from gate_bench import thread_running, wait_until
from pool_bench import PAGE_BYTES, memory_of, pool_of
from warm_bench import come, loaded

from gpupool import Model
from gpupool.errors import (
    DamagedMemoryError,
    LeaseTimeoutError,
    SwapCancelledError,
    UsageError,
)

NEVER = 1e-9  # a share of the link at which the second batch would come in a year
LARGE = 40  # pages, of more than two batches


@contextlib.contextmanager
def begun(model: Model, share: float) -> Iterator[Future[bool]]:
    """A prefetch that has brought its first pages, and is over by the end of the block."""
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(model.prefetch, share)
        wait_until(lambda: model.warm_bytes > 0)
        yield fetching


def test_what_was_fetched_ahead_is_not_waited_for() -> None:
    pool = pool_of(2 * LARGE)
    models = [loaded(pool, name, LARGE) for name in "abc"]
    come(*models)
    a, _, c = models
    with c.resident():
        assert a.prefetch(share=0.5)
        assert not a.prefetch()
    swap_ins = a.swap_ins
    come(a)
    assert a.swap_ins == swap_ins
    pool.close()


def test_a_step_hurries_what_is_fetched_ahead() -> None:
    pool = pool_of(LARGE)
    a = loaded(pool, "a", LARGE)
    with begun(a, NEVER) as fetching:
        come(a)
        assert fetching.result()
    assert a.swap_ins == 1
    # Of the copies, those of the first batch were for nobody yet.
    seen = pool.statistics().models[0].swap_ins
    assert 0 < seen.ahead_bytes < seen.copied_bytes
    assert 0 < seen.ahead_seconds < seen.moving_seconds <= seen.seconds
    pool.close()


@pytest.mark.parametrize("at", [0, PAGE_BYTES - 1, 2 * PAGE_BYTES + 5])
def test_a_bit_that_flips_in_what_was_fetched_ahead_is_put_right_before_a_step(at: int) -> None:
    pool = pool_of(LARGE)
    a = loaded(pool, "a", LARGE)
    region = a.regions("weights")[0]
    with begun(a, NEVER) as fetching:
        memory_of(region)[at] ^= 4
        with a.resident():
            assert memory_of(region)[at] == (ord("a") if at == 0 else 0)
        assert fetching.result()
    assert pool.statistics().models[0].swap_ins.recopied_bytes == PAGE_BYTES
    pool.close()


def test_what_was_fetched_ahead_and_is_damaged_on_the_host_too_serves_nobody() -> None:
    pool = pool_of(LARGE)
    a = loaded(pool, "a", LARGE)
    region = a.regions("weights")[0]
    with begun(a, NEVER) as fetching:
        memory_of(region)[7] ^= 4
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image.cast("B")[7] ^= 2
        with pytest.raises(DamagedMemoryError, match="model 'a'"):
            come(a)
        with pytest.raises(DamagedMemoryError):
            fetching.result()
    assert not a.gate.is_resident and a.warm_bytes == 0
    pool.close()
    assert pool.free_bytes == LARGE * PAGE_BYTES


@pytest.mark.parametrize("ahead", [True, False])
def test_what_nobody_waited_for_is_counted_apart(ahead: bool) -> None:
    pool = pool_of(LARGE)
    a = loaded(pool, "a", LARGE)
    assert a.prefetch() if ahead else come(a) is None
    seen = pool.statistics().models[0].swap_ins
    assert seen.copied_bytes == LARGE * PAGE_BYTES
    assert seen.ahead_bytes == ahead * seen.copied_bytes
    assert seen.ahead_seconds == pytest.approx(ahead * seen.moving_seconds)
    assert seen.moving_seconds > 0
    a.swap_out()
    out = pool.statistics().models[0].swap_outs
    assert (out.copied_bytes, out.moving_seconds, out.ahead_bytes) == (0, 0.0, 0)
    pool.close()


def test_a_revoke_ends_what_is_fetched_ahead() -> None:
    pool = pool_of(LARGE)
    a, b = loaded(pool, "a", LARGE), loaded(pool, "b", 2)
    with begun(a, NEVER) as fetching:
        come(b)
        with pytest.raises(SwapCancelledError):
            fetching.result()
    assert a.warm_bytes == 0
    come(a, b)
    pool.close()


def test_nobody_who_works_makes_room_for_what_is_fetched_ahead() -> None:
    pool = pool_of(3)
    a, b = loaded(pool, "a", 2), loaded(pool, "b", 2)
    a.gate.set_idle(False)
    come(a)
    with pytest.raises(LeaseTimeoutError):
        b.prefetch(timeout_s=0.01)
    assert a.gate.is_resident
    come(b)  # who waits has its turn
    with thread_running(lambda: a.prefetch(timeout_s=20.0)) as results:
        wait_until(lambda: a.gate.is_resident)
    assert results == [True]
    pool.close()


def test_a_model_closes_while_it_is_fetched_ahead() -> None:
    pool = pool_of(LARGE)
    a = loaded(pool, "a", LARGE)
    with begun(a, NEVER) as fetching:
        a.close()
        with pytest.raises(SwapCancelledError):
            fetching.result()
    with pytest.raises(UsageError, match="closed"):
        a.prefetch()
    assert pool.free_bytes == LARGE * PAGE_BYTES
    pool.close()


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    pool = pool_of()
    with pytest.raises(UsageError, match="share"):
        loaded(pool, "a", 1).prefetch(share)
    pool.close()


def test_models_that_fetch_and_use_each_other_out_all_have_what_is_theirs(tmp_path: Path) -> None:
    pool = pool_of(8)
    models = [loaded(pool, name, pages) for name, pages in zip("abcd", (2, 3, 4, 5), strict=True)]
    errors: list[BaseException] = []

    def live(model: Model) -> None:
        try:
            for turn in range(30):
                if turn % 3 == 0:
                    with contextlib.suppress(LeaseTimeoutError, SwapCancelledError):
                        model.prefetch(timeout_s=0.001 * (turn % 5))
                come(model)
                if turn % 7 == 6:
                    model.swap_out()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(model,)) for model in models for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with pool.trace(tmp_path / "trace.json"):
        come(*models)
    pool.close()
    assert pool.free_bytes == 8 * PAGE_BYTES


def test_a_share_next_to_nothing_pauses_and_no_more() -> None:
    pool = pool_of(LARGE)
    a = loaded(pool, "a", LARGE)
    with begun(a, 1e-300) as fetching:
        a.swap_out()
        with pytest.raises(SwapCancelledError):
            fetching.result()
    pool.close()


def test_what_waits_ahead_ends_when_it_is_not_wanted() -> None:
    pool = pool_of(3)
    a, b = loaded(pool, "a", 2), loaded(pool, "b", 2)
    a.gate.set_idle(False)
    come(a)
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(b.prefetch)
        wait_until(lambda: b.gate._state.value == "arriving")
        assert not b.gate.give_up(is_stale=lambda: True)
        assert not fetching.done()
        assert not b.swap_out()
        with pytest.raises(SwapCancelledError):
            fetching.result()
        fetching = thread.submit(b.prefetch)
        wait_until(lambda: b.gate._state.value == "arriving")
        come(b)  # hurries it, which makes the other leave
        assert fetching.result()
    pool.close()
