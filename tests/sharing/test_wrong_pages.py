"""A page that several have is found wrong: nobody begins another step on it."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import gpupool
from gpupool._core import Region
from gpupool.errors import DamagedMemoryError
from tests.sharing.test_fine_tunes import (
    LAYER_BYTES,
    PAGE_BYTES,
    PAGES,
    fine_tune,
    flip,
    has,
    pool_of,
    weights,
)

Tune = tuple[gpupool.Model, Region]


def tunes(pool: gpupool.Pool, count: int) -> list[Tune]:
    models = [fine_tune(pool, tune) for tune in range(1, count + 1)]
    for model, _ in models:
        model.share()
    return models


def damaged(pool: gpupool.Pool) -> list[int]:
    return [model.damaged for model in pool.statistics().models]


def test_who_computes_on_it_leaves_before_the_next_step(caplog: pytest.LogCaptureFixture) -> None:
    with pool_of(2 * PAGES) as pool:
        (one, first), (other, second) = tunes(pool, 2)
        with one.resident():
            flip(pool, first.page_handles[7], 11)
            with caplog.at_level(logging.WARNING):
                assert has(other, second, 2)
            with one.resident():  # of the step that is open
                assert one.swap_ins == 1
        for _ in range(3):
            assert has(one, first, 1)
        assert one.swap_ins == 2 and one.last_swap_in is not None
        assert one.last_swap_in.verified_bytes == first.bytes
        assert damaged(pool) == [1, 1]
        said = [record.message for record in caplog.records]
        assert "model 'tune 2': bytes" in said[0] and len(said) == 2
        assert "model 'tune 1' leaves before its next step" in said[1]
        # What came anew is had together again.
        other.swap_out()
        assert has(other, second, 2)
        assert other.last_swap_in is not None and other.last_swap_in.shared_bytes > 0


def test_what_was_fetched_ahead_comes_anew() -> None:
    with pool_of(PAGES) as pool, ThreadPoolExecutor(1) as thread:
        ((one, first),) = tunes(pool, 1)
        fetching = thread.submit(one.prefetch, 1e-9)
        end_s = time.monotonic() + 30.0
        while one.warm_bytes == 0:
            assert time.monotonic() < end_s
            time.sleep(0.001)
        flip(pool, first.page_handles[0], 11)
        assert has(one, first, 1)
        assert fetching.result()
        assert damaged(pool) == [1]


def test_who_is_asked_to_leave_keeps_nothing_of_it() -> None:
    with pool_of(2 * PAGES) as pool:
        (one, first), (other, second) = tunes(pool, 2)
        with one.resident():
            flip(pool, first.page_handles[7], 11)
        assert has(other, second, 2)
        assert one.gate.give_up(keep=PAGES)
        assert one.warm_bytes == 0
        assert has(one, first, 1)


def test_what_is_warm_of_it_goes() -> None:
    """Also of one that would not look at it as it comes back."""
    with pool_of(3 * PAGES) as pool:
        (one, first), (other, second) = tunes(pool, 2)
        blind = pool.model("blind", shares=True, verify="off")
        region = blind.region("weights", first.bytes)
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image[:] = weights(1)
        region.adopt_image()
        blind.share()
        assert has(one, first, 1) and has(blind, region, 1)
        blind.gate.give_up(keep=PAGES)
        assert blind.warm_bytes == PAGES * PAGE_BYTES
        flip(pool, region.page_handles[7], 11)
        assert has(other, second, 2)
        assert has(blind, region, 1) and has(one, first, 1)
        assert damaged(pool) == [1, 1, 1]


def test_a_page_that_only_its_finder_has_concerns_nobody() -> None:
    with pool_of(3 * PAGES) as pool:
        (one, first), (other, second) = tunes(pool, 2)
        assert has(one, first, 1) and has(other, second, 2)
        other.gate.give_up(keep=PAGES)
        own = LAYER_BYTES * 5 // PAGE_BYTES  # which nobody else has
        flip(pool, second.page_handles[own], 11)
        assert has(other, second, 2)
        assert has(one, first, 1) and one.swap_ins == 1
        assert damaged(pool) == [0, 1]


def test_an_image_that_is_damaged_sends_nobody_away() -> None:
    """What one reads wrong from the host the others have right on the device."""
    with pool_of(2 * PAGES) as pool:
        (one, first), (other, second) = tunes(pool, 2)
        assert has(one, first, 1)
        own = 5 * LAYER_BYTES
        with memoryview(second.image()) as image:  # type: ignore[arg-type]
            image[own] ^= 1
        with pytest.raises(DamagedMemoryError), other.resident():
            pass
        assert has(one, first, 1) and one.swap_ins == 1
        assert damaged(pool) == [0, 2]
