"""torch's caching allocator over a region: real tensors that leave and come back."""

from __future__ import annotations

import gc
from types import ModuleType

import pytest

from gpupool import Model, Pool
from gpupool._core import RegionArena
from gpupool.errors import UsageError
from gpupool.interop import TorchAllocator
from gpupool.pool import MIB

COUNT = 1 << 20  # of 32-bit integers: 4 MiB, which torch takes from 20 MiB at a time


def inside(allocator: TorchAllocator, address: int) -> bool:
    region = allocator.region
    return bool(region.address <= address < region.address + region.bytes)


def overwrite(pool: Pool, torch: ModuleType) -> None:
    """Have another model write to every page of the pool."""
    other: Model = pool.model("other")
    region = other.region("workspace", pool.free_bytes)
    tensor = torch.from_dlpack(region)
    with other.resident():
        tensor.fill_(0xEE)
        torch.cuda.synchronize()
    other.close()


@pytest.mark.parametrize("tag", ["runtime", "workspace"])
def test_contents_over_a_swap(pool: Pool, torch: ModuleType, tag: str) -> None:
    model = pool.model("a")
    allocator = model.torch_allocator(tag, 64 * MIB)
    expected = torch.arange(COUNT, dtype=torch.int32)
    with model.resident(), torch.cuda.use_mem_pool(allocator.mem_pool):
        tensor = expected.to("cuda")
    assert inside(allocator, tensor.data_ptr())
    assert allocator.statistics().live_bytes >= 4 * COUNT
    address = tensor.data_ptr()
    model.swap_out()
    overwrite(pool, torch)
    with model.resident():
        assert tensor.data_ptr() == address
        back = tensor.cpu()
    assert torch.equal(back, expected if tag == "runtime" else torch.zeros_like(expected))
    assert allocator.refused_frees == 0


def test_out_of_room_is_torchs_own_error(pool: Pool, torch: ModuleType) -> None:
    model = pool.model("a")
    allocator = model.torch_allocator("workspace", 32 * MIB)
    with model.resident():
        with torch.cuda.use_mem_pool(allocator.mem_pool):
            with pytest.raises(torch.cuda.OutOfMemoryError):
                torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
            small = torch.full((1000,), 7, device="cuda")  # the pool still works
        elsewhere = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")  # and so does torch
        assert inside(allocator, small.data_ptr())
        assert not inside(allocator, elsewhere.data_ptr())
        assert int(small.sum()) == 7000
    assert allocator.statistics().refused > 0


def test_all_goes_back_when_torch_lets_go(pool: Pool, torch: ModuleType) -> None:
    model = pool.model("a")
    allocator = model.torch_allocator("workspace", 64 * MIB)
    arena = allocator._arena
    with model.resident():
        with torch.cuda.use_mem_pool(allocator.mem_pool):
            tensor = torch.ones(COUNT, device="cuda")
        del allocator
        gc.collect()
        assert float(tensor.sum()) == COUNT  # a tensor outlives its pool
        del tensor
        gc.collect()
        torch.cuda.empty_cache()
        assert arena.statistics().live_blocks == 0
        assert arena.refused_frees == 0
    del arena
    gc.collect()
    assert RegionArena.slots_taken() == 0


def test_a_graph_is_replayed_after_a_swap(pool: Pool, torch: ModuleType) -> None:
    model = pool.model("a")
    allocator = model.torch_allocator("cudagraph", 64 * MIB)
    with model.resident():
        with torch.cuda.use_mem_pool(allocator.mem_pool):
            source = torch.zeros(COUNT, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=allocator.mem_pool.id):
            result = source * 2 + 1
        assert inside(allocator, result.data_ptr())
    model.swap_out()
    overwrite(pool, torch)
    with model.resident():
        source.fill_(20.0)
        graph.replay()
        torch.cuda.synchronize()
        assert float(result.min()) == float(result.max()) == 41.0


def test_a_tensor_over_a_region(pool: Pool, torch: ModuleType) -> None:
    model = pool.model("a")
    region = model.region("runtime", 3 * MIB)
    tensor = torch.from_dlpack(region)
    assert tensor.device == torch.device("cuda", pool.driver.ordinal)
    assert tensor.data_ptr() == region.address
    with model.resident():
        same = torch.as_tensor(region, device="cuda")  # by __cuda_array_interface__
        assert same.data_ptr() == region.address
        tensor.copy_(torch.arange(3 * MIB, device="cuda") % 251)
    model.swap_out()
    overwrite(pool, torch)
    with model.resident():
        assert torch.equal(tensor.cpu(), (torch.arange(3 * MIB) % 251).to(torch.uint8))


def test_what_belongs_elsewhere_is_refused(pool: Pool, torch: ModuleType) -> None:
    model = pool.model("a")
    region = model.region("runtime", 1000)
    assert not hasattr(region, "__array_interface__")
    with pytest.raises(BufferError):
        region.__dlpack__(dl_device=(1, 0))
    with pytest.raises(UsageError, match="use one of"):
        model.torch_allocator("weights", 1 << 20)
