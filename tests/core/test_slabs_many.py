"""Many blocks of a slab allocator at once, over memory that is supplied, as Python has them."""

from __future__ import annotations

import ctypes
import os
from array import array

import pytest

from gpupool._core import (
    BlockCopier,
    Driver,
    FaultPlan,
    SlabAllocator,
    SuppliedSlabs,
    open_host_driver,
    with_faults,
)
from gpupool.errors import (
    DriverError,
    NoSlabSuppliedError,
    OutOfBlocksError,
    StaleBlockError,
    UsageError,
)

SLAB_BYTES = 4096


def supply(source: SuppliedSlabs, size_bytes: int = SLAB_BYTES) -> None:
    fd = os.memfd_create("slab", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
        source.supply(fd)
    finally:
        os.close(fd)


def test_blocks_of_supplied_slabs(driver: Driver) -> None:
    source = SuppliedSlabs(driver, SLAB_BYTES)
    slabs = SlabAllocator.on_supplied(source, [1024], 8)
    handles, addresses = array("Q", bytes(8 * 8)), array("Q", bytes(8 * 8))
    with pytest.raises(NoSlabSuppliedError, match="all 0 slabs"):
        slabs.allocate(1)
    supply(source)
    with pytest.raises(NoSlabSuppliedError):
        slabs.allocate_many(1024, handles)
    assert slabs.statistics().bytes_live == 0
    supply(source)
    slabs.allocate_many(1000, handles)
    slabs.addresses_of(handles, addresses)
    assert len(set(addresses)) == 8
    assert list(addresses) == [slabs.address_of(handle) for handle in handles]
    for address in addresses:
        ctypes.memset(address, 1, 1024)
    assert (source.in_use, source.idle, source.lost) == (2, 0, 0)
    slabs.free_many(handles)
    slabs.trim()
    assert (source.in_use, source.idle) == (0, 2)
    assert source.drop_idle() == 2
    assert issubclass(NoSlabSuppliedError, OutOfBlocksError)


def test_what_is_wrong_with_one_of_many(driver: Driver) -> None:
    source = SuppliedSlabs(driver, SLAB_BYTES)
    slabs = SlabAllocator.on_supplied(source, [1024], 8)
    supply(source)
    handles = array("Q", bytes(8 * 3))
    slabs.allocate_many(1024, handles)
    with pytest.raises(StaleBlockError, match="named twice"):
        slabs.free_many(handles + handles[:1])
    with pytest.raises(StaleBlockError, match="never existed"):
        slabs.free_many(handles + array("Q", [0]))
    with pytest.raises(UsageError, match="room for 1"):
        slabs.addresses_of(handles, array("Q", [0]))
    with pytest.raises(UsageError, match="words of 64 bits"):
        slabs.free_many(array("I", [0, 0]))
    with pytest.raises(UsageError, match="aligned"):
        slabs.free_many(memoryview(bytearray(17))[1:].cast("B").cast("Q"))
    with pytest.raises(BufferError):
        slabs.allocate_many(1024, bytes(8))
    with pytest.raises(UsageError, match="as large as"):
        slabs.allocate_many(5000, handles)
    assert slabs.statistics().shapes[0].blocks_live == 3
    slabs.free_many(handles)
    slabs.free_many(array("Q"))


def test_memory_that_cannot_be_supplied(driver: Driver) -> None:
    plan = FaultPlan()
    source = SuppliedSlabs(with_faults(driver, plan), SLAB_BYTES)
    with pytest.raises(UsageError, match="descriptor"):
        source.supply(-1)
    with pytest.raises(UsageError, match="holds less"):
        supply(source, 100)
    plan.arm(1, 2)
    with pytest.raises(DriverError):
        supply(source)
    assert source.idle == 0
    assert source.slab_bytes == SLAB_BYTES


def test_marks_among_copies() -> None:
    for seed in range(20):
        driver = open_host_driver(stepped_seed=seed)
        copier = BlockCopier(driver)
        empty = copier.mark()
        empty.wait()
        assert empty.done()
        plan = FaultPlan()
        failing = BlockCopier(with_faults(driver, plan))
        mark = failing.mark()
        plan.arm(1, 999)
        with pytest.raises(DriverError):
            mark.wait()
        plan.arm(1, 999)
        with pytest.raises(DriverError):
            failing.mark()
        plan.disarm()
        mark.wait()
