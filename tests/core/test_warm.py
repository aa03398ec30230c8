"""Models that keep some of their pages while they are out, or come before they are used."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gate_bench import thread_running, wait_until
from pool_bench import PAGE_BYTES, memory_of, pool_of

from gpupool import Model, Pool
from gpupool.errors import (
    DamagedMemoryError,
    LeaseTimeoutError,
    SwapCancelledError,
    UsageError,
)

NEVER = 1e-9  # a share of the link at which the second batch would come in a year
LARGE = 40  # pages, of more than two batches


def loaded(pool: Pool, name: str, pages: int) -> Model:
    model = pool.model(name)
    region = model.region("weights", pages * PAGE_BYTES)
    with memoryview(region.image()) as image:  # type: ignore[arg-type]
        image.cast("B")[:: PAGE_BYTES // 2] = bytes([ord(name)]) * (2 * pages)
    region.adopt_image()
    return model


def come(*models: Model) -> None:
    for model in models:
        with model.resident():
            assert set(memory_of(model.regions("weights")[0])[:: PAGE_BYTES // 2]) == {
                ord(model.name)
            }


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
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(a.prefetch, NEVER)
        wait_until(lambda: a.warm_bytes > 0)
        come(a)
        assert fetching.result()
    assert a.swap_ins == 1
    pool.close()


def test_a_revoke_ends_what_is_fetched_ahead() -> None:
    pool = pool_of(LARGE)
    a, b = loaded(pool, "a", LARGE), loaded(pool, "b", 2)
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(a.prefetch, NEVER)
        wait_until(lambda: a.warm_bytes > 0)
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
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(a.prefetch, NEVER)
        wait_until(lambda: a.warm_bytes > 0)
        a.close()  # once it is there, for which it hurries
        assert fetching.result()
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
