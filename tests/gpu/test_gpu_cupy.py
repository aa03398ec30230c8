"""CuPy's allocations out of a region, and regions and slabs as CuPy's arrays."""

from __future__ import annotations

import gc
from types import ModuleType

import pytest

from gpupool import Pool
from gpupool.pool import MIB

numpy = pytest.importorskip("numpy")


@pytest.mark.parametrize("tag", ["runtime", "workspace"])
def test_contents_over_a_swap(pool: Pool, cupy: ModuleType, tag: str) -> None:
    model = pool.model("a")
    allocator = model.cupy_allocator(tag, 32 * MIB)
    with model.resident():
        with cupy.cuda.using_allocator(allocator):
            array = cupy.arange(1 << 20, dtype=cupy.int32)
        region = allocator.region
        assert region.address <= array.data.ptr < region.address + region.bytes
        cupy.cuda.Device().synchronize()
    model.swap_out()
    with model.resident():
        kept = numpy.arange(1 << 20, dtype=numpy.int32)
        assert (array.get() == (kept if tag == "runtime" else 0 * kept)).all()
        del array
        gc.collect()
        allocator.free_all_blocks()
        assert allocator.statistics().live_bytes == 0
        assert allocator.refused_frees == 0


def test_out_of_room_is_cupys_own_error(pool: Pool, cupy: ModuleType) -> None:
    model = pool.model("a")
    allocator = model.cupy_allocator("workspace", 8 * MIB)
    with model.resident(), cupy.cuda.using_allocator(allocator):
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(16 * MIB, dtype=cupy.uint8)
        freed = cupy.empty(5 * MIB, dtype=cupy.uint8)
        del freed  # CuPy keeps it, and lets it go when it needs room
        assert int(cupy.full(7 * MIB, 1, dtype=cupy.uint8).sum()) == 7 * MIB


def test_arrays_over_a_region(pool: Pool, cupy: ModuleType) -> None:
    model = pool.model("a")
    region = model.region("runtime", 3 * MIB)
    with model.resident():
        array = cupy.asarray(region)  # by __cuda_array_interface__
        same = cupy.from_dlpack(region)
        assert array.data.ptr == same.data.ptr == region.address
        array[:] = cupy.arange(3 * MIB) % 251
        assert int(same[250]) == 250
        cupy.cuda.Device().synchronize()
    model.swap_out()
    with model.resident():
        assert (array.get() == numpy.arange(3 * MIB) % 251).all()


def test_blocks_of_slabs(pool: Pool, cupy: ModuleType) -> None:
    slabs = pool.slabs([64 * 1024])
    handles = [slabs.allocate(64 * 1024) for _ in range(40)]
    arrays = []
    for value, handle in enumerate(handles):
        memory = cupy.cuda.UnownedMemory(slabs.address_of(handle), 64 * 1024, slabs)
        pointer = cupy.cuda.MemoryPointer(memory, 0)
        arrays.append(cupy.ndarray((64 * 1024,), dtype=cupy.uint8, memptr=pointer))
        arrays[-1].fill(value)
    for value, (handle, array) in enumerate(zip(handles, arrays, strict=True)):
        assert (array.get() == value).all()
        slabs.free(handle)
    slabs.trim()
    assert pool.free_bytes == 256 * MIB
