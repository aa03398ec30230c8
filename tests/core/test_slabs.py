"""Slabs from Python: a plain model of them, threads, and models that wait for their pages."""

from __future__ import annotations

import ctypes
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from pool_bench import BUDGET_PAGES, PAGE_BYTES, pool_of, resident_model

from gpupool import SlabAllocator
from gpupool._core import FaultPlan
from gpupool.errors import (
    DriverError,
    GpupoolError,
    OutOfBlocksError,
    StaleBlockError,
    UsageError,
)

SIZES = [PAGE_BYTES // 8, PAGE_BYTES // 2, 4096]


class SlabMachine(RuleBasedStateMachine):
    """Blocks in use are stamped, apart from each other, and stale handles are always refused."""

    live = Bundle("live")
    dead = Bundle("dead")

    @initialize(pinned=st.booleans())
    def start(self, pinned: bool) -> None:
        self.pool = pool_of()
        self.pinned = pinned
        self.slabs = self.pool.slabs(SIZES, slab_bytes=PAGE_BYTES, slabs_max=2, pinned=pinned)
        assert self.slabs.block_bytes == SIZES
        self.blocks: dict[int, tuple[int, int, int]] = {}  # handle: address, bytes, stamp
        self.stamp = 0

    def stamped(self, handle: int, size: int) -> int:
        address = self.slabs.address_of(handle)
        for other, (start, length, _) in self.blocks.items():
            assert address + size <= start or start + length <= address, (handle, other)
        self.stamp = self.stamp % 255 + 1
        ctypes.memset(address, self.stamp, size)
        self.blocks[handle] = (address, size, self.stamp)
        return handle

    @rule(target=live, wanted=st.integers(1, SIZES[1]))
    def allocate(self, wanted: int) -> int:
        size = min(size for size in SIZES if size >= wanted)
        return self.allocated(lambda: self.slabs.allocate(wanted), size)

    @rule(target=live, shape=st.integers(0, len(SIZES) - 1))
    def allocate_shape(self, shape: int) -> int:
        return self.allocated(lambda: self.slabs.allocate_shape(shape), SIZES[shape])

    def allocated(self, allocate: object, size: int) -> int:
        try:
            return self.stamped(allocate(), size)  # type: ignore[operator]
        except OutOfBlocksError:
            of = [s for s in self.slabs.statistics().shapes if s.block_bytes == size]
            assert of[0].blocks == of[0].blocks_live
            return 0
        except UsageError:
            assert not self.pinned
            assert self.pool.free_bytes == 0
            return 0

    @rule(target=dead, handle=consumes(live))
    def free(self, handle: int) -> int:
        if handle:
            address, size, stamp = self.blocks.pop(handle)
            assert ctypes.string_at(address, size) == bytes([stamp]) * size
            self.slabs.free(handle)
        return handle

    @rule(handle=dead)
    def stale(self, handle: int) -> None:
        for use in (self.slabs.free, self.slabs.address_of):
            with pytest.raises(StaleBlockError, match=r"freed already|never existed") as caught:
                use(handle)
            assert (caught.value.slab << 48) | (caught.value.block << 32) | (
                caught.value.generation
            ) == handle
            del caught  # its traceback has this frame, which has the slabs

    @rule()
    def trim(self) -> None:
        self.slabs.trim()
        assert all(s.slabs == 0 or s.blocks_live for s in self.slabs.statistics().shapes)

    @precondition(lambda self: hasattr(self, "slabs"))
    @invariant()
    def counts(self) -> None:
        statistics = self.slabs.statistics()
        assert statistics.bytes_live == sum(size for _, size, _ in self.blocks.values())
        assert statistics.bytes_held == statistics.slabs * PAGE_BYTES
        assert statistics.slabs_made - statistics.slabs_returned == statistics.slabs
        held = 0 if self.pinned else statistics.bytes_held
        assert self.pool.free_bytes == BUDGET_PAGES * PAGE_BYTES - held

    def teardown(self) -> None:
        if hasattr(self, "slabs"):
            del self.slabs  # gives all back
            assert self.pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
            self.pool.close()


TestSlabMachine = SlabMachine.TestCase
TestSlabMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_sizes_that_make_no_sense_are_refused() -> None:
    pool = pool_of()
    for sizes, slab_bytes in (
        ([], None),
        ([0], None),
        ([PAGE_BYTES + 1], None),
        ([8], None),  # more than 65536 blocks
        ([4096], PAGE_BYTES + 4096),
        ([4096], 0),
    ):
        with pytest.raises(UsageError):
            pool.slabs(sizes, slab_bytes=slab_bytes)
    with pytest.raises(UsageError, match="as large as 4097"):
        pool.slabs([4096]).allocate(4097)
    with pytest.raises(UsageError, match="shape 1"):
        pool.slabs([4096]).allocate_shape(1)
    with pytest.raises(TypeError):
        pool.slabs([4096]).free(-1)
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_the_errors_are_gpupools() -> None:
    assert issubclass(StaleBlockError, UsageError)
    assert issubclass(OutOfBlocksError, GpupoolError)
    slabs = pool_of().slabs([PAGE_BYTES], slabs_max=1)
    handle = slabs.allocate(1)
    with pytest.raises(OutOfBlocksError):
        slabs.allocate(1)
    slabs.free(handle)


def test_threads_free_what_others_allocated() -> None:
    pool = pool_of()
    slabs = pool.slabs([4096], slabs_max=4)
    handed: list[list[int]] = [[], []]
    refused: list[int] = []
    barrier = threading.Barrier(4)

    def work(index: int) -> None:
        mine = handed[index % 2]
        for _ in range(500):
            handle = slabs.allocate(4096)
            ctypes.memset(slabs.address_of(handle), index, 4096)
            if ctypes.string_at(slabs.address_of(handle), 4096) != bytes([index]) * 4096:
                raise AssertionError(f"block {handle:#x} was written by another")
            if index < 2:
                mine.append(handle)
            else:
                slabs.free(handle)
        barrier.wait(60.0)
        if index >= 2:  # both free all of one list: each handle counts once
            for handle in handed[0] + handed[1]:
                try:
                    slabs.free(handle)
                except StaleBlockError:
                    refused.append(handle)

    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
    assert errors == []
    assert sorted(refused) == sorted(handed[0] + handed[1])
    assert slabs.statistics().bytes_live == 0
    slabs.trim()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_models_wait_for_pages_in_slabs() -> None:
    pool = pool_of()
    slabs = pool.slabs([PAGE_BYTES])
    handle = slabs.allocate(PAGE_BYTES)
    model = resident_model(pool, "a", BUDGET_PAGES)
    waiting = threading.Event()

    def give_back() -> None:
        waiting.wait(20.0)
        slabs.free(handle)
        slabs.trim()

    thread = threading.Thread(target=give_back)
    thread.start()
    decide = type(pool._arbiter)._decide

    def seen(arbiter: object) -> float | None:
        waiting.set()
        return decide(arbiter)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pool._arbiter), "_decide", seen)
        with model.resident(timeout_s=60.0):
            assert pool.free_bytes == 0
            with pytest.raises(UsageError, match="free"):  # and slabs for pages in models
                slabs.allocate(1)
    thread.join(20.0)
    pool.close()


def test_pages_that_slabs_take_while_a_grant_is_made_are_waited_for() -> None:
    pool = pool_of()
    slabs = pool.slabs([PAGE_BYTES])
    model = resident_model(pool, "a", BUDGET_PAGES)
    pages, taken = pool._arbiter._arbiter._pages, []

    class Late:
        """The pool of pages, of which slabs take one just before the first grant."""

        def __getattr__(self, name: str) -> object:
            return getattr(pages, name)

        def acquire(self, owner: int, count: int) -> list[int]:
            if not taken:
                taken.append(slabs.allocate(1))
                try:
                    return pages.acquire(owner, count)
                finally:
                    slabs.free(taken[0])
                    slabs.trim()
            return pages.acquire(owner, count)

    pool._arbiter._arbiter._pages = Late()  # type: ignore[assignment]
    with model.resident(timeout_s=60.0):
        assert taken
    pool.close()


@pytest.mark.parametrize("pinned", [False, True])
def test_every_fault_leaves_an_allocator_that_works(pinned: bool) -> None:
    nth, injected = 0, 1
    while injected:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan)
        slabs = pool.slabs([4096], pinned=pinned)
        plan.arm(nth, 2)
        try:
            slabs.free(slabs.allocate(1))
            slabs.trim()
        except DriverError as error:
            assert error.status == 2
        injected = plan.injected
        plan.disarm()
        slabs.free(slabs.allocate(1))
        slabs.trim()
        assert slabs.statistics().bytes_held == 0
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    assert nth > (1 if pinned else 3)


def test_slabs_outlive_their_pool() -> None:
    slabs: SlabAllocator = pool_of().slabs([4096])
    handle = slabs.allocate(1)
    ctypes.memset(slabs.address_of(handle), 1, 4096)
    slabs.free(handle)
