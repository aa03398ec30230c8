"""The store: memory of one model alone, under a budget, all or nothing."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
from kv_world import SLAB_BYTES, Memories

from gpupool import Pool
from gpupool._core import FaultPlan, open_host_driver, with_faults
from gpupool.errors import (
    DaemonUnavailableError,
    DriverError,
    KvStoreFullError,
    RefusedError,
    UsageError,
)
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import Blocks, as_blocks
from gpupool.kv.store import KvIdentity, KvStore

LAYOUT = BlockLayout.of([(0, 1000, 1000)], 64)  # rows of 1008 bytes, 4 to a slab
IDENTITY = KvIdentity("a", 1, "float16", LAYOUT)


def store_of(slabs: int = 4, plan: FaultPlan | None = None) -> tuple[KvStore, Memories]:
    driver = open_host_driver()
    memories = Memories(driver if plan is None else with_faults(driver, plan))
    budget_bytes = slabs * SLAB_BYTES + 100
    return KvStore(memories, IDENTITY, budget_bytes=budget_bytes, slab_bytes=SLAB_BYTES), memories


def blocks(*numbers: int) -> Blocks:
    return np.array(numbers, np.int64)


def test_rows_are_apart_and_in_slabs_that_come_and_go() -> None:
    store, memories = store_of()
    store.reserve(np.arange(10))
    assert memories.bytes == 3 * SLAB_BYTES
    rows = store.addresses(np.arange(10), IDENTITY)
    assert (np.diff(np.sort(rows)) >= 1000).all()
    assert (rows % 16 == 0).all()
    for row in rows:
        assert ctypes.string_at(int(row), 1000) == bytes(1000)  # nobody's before
        ctypes.memset(int(row), 1, 1000)
    kept = store.statistics()
    assert (kept.rows_live, kept.rows_held, kept.slabs, kept.slabs_lost) == (10, 12, 3, 0)
    store.release(np.arange(4, 10))
    store.release(np.arange(4))
    assert memories.bytes == SLAB_BYTES  # one is kept for the next row
    store.trim()
    assert memories.bytes == 0
    store.reserve(blocks(5))
    store.release(blocks(5))
    store.close()
    store.close()
    assert memories.bytes == 0


def test_a_full_store_says_what_to_do_and_has_changed_nothing() -> None:
    store, memories = store_of(slabs=2)
    store.reserve(np.arange(7))
    with pytest.raises(KvStoreFullError, match=r"2 more .* 7 are kept in 8192 of 8292 .* larger"):
        store.reserve(blocks(20, 21))
    assert not store.has_row(blocks(20, 21)).any()
    assert memories.bytes == 2 * SLAB_BYTES
    store.reserve(blocks(20))
    with pytest.raises(KvStoreFullError):
        store.reserve(blocks(21))


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_memory_that_is_refused_in_between_leaves_nothing(nth: int) -> None:
    store, memories = store_of()
    memories.refuse_at = nth
    with pytest.raises(KvStoreFullError, match="no memory"):
        store.reserve(np.arange(12))
    assert memories.bytes == 0
    assert store.statistics().rows_live == 0
    store.reserve(np.arange(12))


@pytest.mark.parametrize("kind", [RefusedError, DaemonUnavailableError])
def test_the_pools_refusal_is_passed_on(kind: type[Exception]) -> None:
    store, memories = store_of()

    def refused(size_bytes: int) -> int:
        raise kind(f"{size_bytes} bytes: raise the host budget")

    memories.host_memory = refused  # type: ignore[method-assign]
    with pytest.raises(KvStoreFullError, match="raise the host budget"):
        store.reserve(blocks(1))


@pytest.mark.parametrize(("code", "error"), [(2, KvStoreFullError), (999, DriverError)])
def test_memory_that_cannot_be_registered_goes_back(code: int, error: type[Exception]) -> None:
    for nth in range(1, 4):
        plan = FaultPlan()
        store, memories = store_of(plan=plan)
        plan.arm(nth, code)
        with pytest.raises(error):
            store.reserve(np.arange(12))
        plan.disarm()
        assert memories.bytes == 0
        store.reserve(np.arange(12))
        assert memories.bytes == 3 * SLAB_BYTES


def test_a_daemon_that_is_gone_stops_no_release() -> None:
    store, memories = store_of()
    store.reserve(np.arange(12))

    def gone(size_bytes: int) -> None:
        raise DaemonUnavailableError("gone")

    memories.return_host_memory = gone  # type: ignore[method-assign]
    store.release(np.arange(12))
    store.close()
    assert store.statistics().held_bytes == 0


def test_rows_are_for_whom_they_are() -> None:
    store, _ = store_of()
    store.reserve(blocks(3))
    for other in (
        dataclasses.replace(IDENTITY, model="b"),
        dataclasses.replace(IDENTITY, weights_version=2),
        dataclasses.replace(IDENTITY, dtype="bfloat16"),
        dataclasses.replace(IDENTITY, layout=BlockLayout.of([(0, 1016, 1000)], 64)),
    ):
        with pytest.raises(UsageError, match=r"of 'a' \(weights 1, float16\) are no blocks of"):
            store.addresses(blocks(3), other)
        with pytest.raises(UsageError):
            store.rekey(other)
    store.release(blocks(3))
    newer = dataclasses.replace(IDENTITY, weights_version=2)
    store.rekey(newer)
    with pytest.raises(UsageError):
        store.addresses(blocks(), IDENTITY)
    assert len(store.addresses(blocks(), newer)) == 0


def test_no_memory_is_shared_between_models() -> None:
    """A store's memory is its own files, made for it and gone with it."""
    pool = Pool(device="host", budget_bytes=2 << 20, page_bytes=2 << 20)
    of_a, of_b = Memories(pool.driver), Memories(pool.driver)
    stores = [
        KvStore(
            memories,
            dataclasses.replace(IDENTITY, model=name),
            budget_bytes=1 << 20,
            slab_bytes=SLAB_BYTES,
        )
        for name, memories in (("a", of_a), ("b", of_b))
    ]
    for _ in range(3):
        for store, stamp in zip(stores, (1, 2), strict=True):
            store.reserve(np.arange(16))
            for row in store.addresses(np.arange(16), store.identity):
                assert ctypes.string_at(int(row), 1000) == bytes(1000)
                ctypes.memset(int(row), stamp, 1000)
        for store in stores:
            store.release(np.arange(16))
            store.trim()
    assert not of_a.inodes & of_b.inodes
    assert len(of_a.inodes) == len(of_b.inodes) == 12
    assert of_a.bytes == of_b.bytes == 0


def test_a_session_of_a_pool_gives_the_memory() -> None:
    pool = Pool(device="host", budget_bytes=2 << 20, page_bytes=2 << 20)
    store = KvStore(pool.session("a"), IDENTITY, budget_bytes=1 << 20)
    store.reserve(np.arange(64))
    assert store.statistics().rows_live == 64
    store.release(np.arange(64))
    store.close()


def test_misuse_changes_nothing() -> None:
    memories = Memories(open_host_driver())
    with pytest.raises(UsageError, match="larger budget"):
        KvStore(memories, IDENTITY, budget_bytes=1000)
    store, memories = store_of()
    store.reserve(blocks(1, 2))
    with pytest.raises(UsageError, match="has a row"):
        store.reserve(blocks(2, 3))
    with pytest.raises(UsageError, match="no row"):
        store.release(blocks(1, 3))
    with pytest.raises(UsageError, match="no row"):
        store.addresses(blocks(1, 3), IDENTITY)
    with pytest.raises(UsageError, match="2 KV blocks are kept"):
        store.close()
    assert store.statistics().rows_live == 2
    store.release(blocks(1, 2))
    store.close()
    with pytest.raises(UsageError, match="closed"):
        store.reserve(blocks(1))
    assert memories.bytes == 0


def test_blocks_are_named_in_many_ways_and_wrong_ones_refused() -> None:
    assert as_blocks([3, 1, 3, 2], 4).tolist() == [3, 1, 2]
    assert as_blocks({0}, 1).tolist() == [0]
    assert as_blocks([], 1).tolist() == as_blocks(range(0), 1).tolist() == []
    assert as_blocks(np.array([1, 0], np.uint32), 2).dtype == np.int64
    for wrong in ([-1], [4], [0.5], np.zeros((2, 2), np.int64)):
        with pytest.raises(UsageError):
            as_blocks(wrong, 4)  # type: ignore[arg-type]
