"""A paged KV cache that follows the swaps of its model, beside a plain record of its blocks."""

from __future__ import annotations

import ctypes
import doctest
import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from kv_pair import BLOCKS, LAYOUT, PAGE_BYTES, two

import gpupool.kv.paged
from gpupool import Pool
from gpupool._core import FaultPlan
from gpupool.errors import (
    DriverError,
    GpupoolError,
    KvStoreFullError,
    LeaseTimeoutError,
    UsageError,
)
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import Blocks, Words
from gpupool.kv.mover import CopierMover
from gpupool.kv.paged import PagedKv

OTHER = BlockLayout.of([(0, 64, 64)], blocks=BLOCKS)


def test_the_doctest() -> None:
    assert doctest.testmod(gpupool.kv.paged, raise_on_error=True).attempted >= 8


@pytest.mark.parametrize("seed", range(40))
def test_blocks_survive_swaps(seed: int) -> None:
    chooser = random.Random(seed)
    with two(seed if seed % 2 else None, FaultPlan()) as models:
        for _ in range(60):
            chooser.choice(models).step(chooser)
        for model in models:
            model.check()
            assert model.model.swap_ins > 5


def test_no_block_reads_what_another_model_had_in_its_place() -> None:
    with two(None, FaultPlan()) as (a, b):
        with a.model.resident():
            ctypes.memset(a.kv.region.address, 0x5A, PAGE_BYTES)
            a.kv.write(range(BLOCKS))
        with b.model.resident():
            seen = ctypes.string_at(b.kv.region.address, PAGE_BYTES)
            assert seen == bytes(PAGE_BYTES)
        with a.model.resident():
            a.kv.cache.require(range(BLOCKS))
            seen = ctypes.string_at(a.kv.region.address, PAGE_BYTES)
            kept = b"\x5a" * LAYOUT.extent_bytes
            assert seen == kept + bytes(PAGE_BYTES - len(kept))


@pytest.mark.parametrize("persistent", [False, True])
def test_after_a_failing_call_everything_is_still_there(persistent: bool) -> None:
    failed = 0
    for call in range(1, 60):
        chooser, plan = random.Random(call % 5), FaultPlan()
        with two(None, plan) as models:
            for _ in range(8):
                chooser.choice(models).step(chooser)
            before = plan.injected
            plan.arm(call, 2, persistent)
            for _ in range(4):
                model = chooser.choice(models)
                wanted = list(model.content)
                model.kv.bring_first(wanted)
                with suppress(GpupoolError), model.model.resident():
                    model.kv.write(wanted[:3])
                    model.kv.cache.require(wanted)
            failed += plan.injected > before
            plan.disarm()
            for model in models:
                model.check()
                model.model.swap_out()
                assert model.kv.cache.statistics().saved == 0
    assert failed >= 40


def test_a_block_that_writes_anywhere_leaves_blocks_to_their_keeper() -> None:
    with two(None, FaultPlan()) as (a, b):
        a.step(random.Random(1))
        with a.model.resident(writes=True):
            pass
        b.check()
        a.check()


def test_a_failed_arrival_leaves_the_model_out_and_its_blocks_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = FaultPlan()
    with two(None, plan) as (a, b):
        a.step(random.Random(1))
        b.step(random.Random(1))  # a is out
        mover = a.kv.cache._mover
        to_device, refused = mover.to_device, 0

        def failing(blocks: Blocks, rows: Words) -> None:
            nonlocal refused
            refused += 1
            to_device(blocks, rows)  # in flight all the same
            raise RuntimeError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(mover, "to_device", failing)
            with pytest.raises(RuntimeError, match="planted"), a.model.resident():
                pass
        assert refused == 1
        assert not a.model.gate.is_resident
        b.check()  # the pages came back
        a.check()


def test_a_model_that_cannot_leave_again_after_a_failed_arrival_leaves_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = FaultPlan()
    with two(None, plan) as (a, b):
        a.step(random.Random(1))
        b.step(random.Random(1))

        def failing(first: object) -> None:
            plan.arm(1, 999, persistent=True)  # from here on the device does nothing any more
            raise RuntimeError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(a.kv.cache, "restore", failing)
            with pytest.raises(RuntimeError, match="planted"), a.model.resident():
                pass
        plan.disarm()
        assert a.model._residency.torn
        b.check()  # which has the pages that a gave up
        assert not a.model._residency.torn
        a.check()


def test_pages_of_what_is_saved_already_go_before_blocks_are_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that others can fill them meanwhile; after a failure the rest is saved the next time."""
    with two(None, FaultPlan()) as (a, b):
        a.step(random.Random(1))
        save, free = a.kv.cache.save, []

        def failing() -> int:
            free.append(a.pool.free_bytes)
            if len(free) == 1:
                raise RuntimeError("planted")
            return save()

        monkeypatch.setattr(a.kv.cache, "save", failing)
        with pytest.raises(RuntimeError, match="planted"):
            a.model.swap_out()
        assert not a.model.gate.is_resident  # in part
        assert a.model._residency.torn
        b.check()
        assert free == [PAGE_BYTES, PAGE_BYTES]
        a.check()


def test_a_model_stays_while_its_store_is_full() -> None:
    row_bytes = -(-LAYOUT.row_bytes // 16) * 16
    with two(None, FaultPlan(), store_bytes=4 * row_bytes) as (a, b):
        with a.model.resident():
            a.kv.write(range(6))
            for block in range(6):
                a.content[block] = block
                a._put(block)
        assert a.kv.cache.statistics().unbacked == 6
        with pytest.raises(KvStoreFullError):
            a.model.swap_out()
        assert a.model.gate.is_resident
        with pytest.raises(LeaseTimeoutError, match="'a' cannot leave: 6 more KV blocks"):
            b.model.gate.open_step(timeout_s=0.01)
        a.check()  # it goes on meanwhile
        a.kv.cache.forget([0, 5])
        del a.content[0], a.content[5]
        with b.model.resident():  # asked again after a second
            assert not a.model.gate.is_resident
        a.check()
        with a.model.resident():
            a.kv.write(range(6))  # and closes all the same


def test_a_close_that_fails_loses_no_block() -> None:
    for call in range(1, 40):
        plan = FaultPlan()
        with two(None, plan) as (a, b):
            a.step(random.Random(call))
            with a.model.resident():
                pass
            plan.arm(call, 2, persistent=True)
            try:
                a.model.close()
            except DriverError:
                plan.disarm()
                a.check()
            else:
                plan.disarm()
                b.step(random.Random(call))
                return
    raise AssertionError("no close came through")


def test_blocks_beyond_the_region_are_refused_and_nothing_is_left() -> None:
    pool = Pool(device="host", budget_bytes=PAGE_BYTES, page_bytes=PAGE_BYTES)
    model = pool.model("a")

    def kept(**change: object) -> None:
        given: dict[str, object] = {"region_bytes": PAGE_BYTES, "dtype": "int8", **change}
        PagedKv(model, LAYOUT, **given)  # type: ignore[arg-type]

    refused: list[Callable[[], None]] = [
        lambda: kept(region_bytes=LAYOUT.extent_bytes - 1),
        lambda: kept(store_bytes=10),
        lambda: kept(store_bytes=4096 * (BLOCKS - 1), fills_up=True),
        lambda: kept(mover=lambda d, _, at, n: CopierMover(d, OTHER, at, method="batch")),
    ]
    for attempt in refused:
        with pytest.raises(UsageError):
            attempt()
        assert model.regions("kv_cache") == []
    kept()
    with model.resident(), pytest.raises(UsageError, match="while its model is out"):
        kept()
    pool.close()
