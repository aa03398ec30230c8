"""Allocators for torch and CuPy: what they refuse, and what they tell those libraries."""

from __future__ import annotations

import doctest
import gc
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from interop_bench import (
    CUPY_ALLOCATE,
    CUPY_FREE,
    TORCH_ALLOCATE,
    TORCH_FREE,
    cupy_pair,
    model_alone,
)
from pool_bench import PAGE_BYTES

import gpupool.interop
from gpupool import Model
from gpupool._core import Region, RegionArena
from gpupool.errors import UsageError
from gpupool.interop import CupyAllocator, TorchAllocator


def test_the_doctests_of_interop() -> None:
    pytest.importorskip("torch")
    results = doctest.testmod(gpupool.interop, raise_on_error=True)
    assert results.attempted >= 8


@pytest.fixture
def model() -> Iterator[Model]:
    with model_alone() as model:
        yield model


class OnHost:
    """A model of the host device that says it was on a GPU."""

    device_kind = "cuda"

    def __init__(self, model: Model) -> None:
        self.model = model

    def region(self, tag: str, size_bytes: int, *, capacity_bytes: int = 0) -> Region:
        return self.model.region(tag, size_bytes, capacity_bytes=capacity_bytes)

    def remove_region(self, region: Region) -> None:
        self.model.remove_region(region)


@pytest.mark.parametrize("kind", ["torch_allocator", "cupy_allocator"])
def test_the_host_device_has_none(model: Model, kind: str) -> None:
    with pytest.raises(UsageError, match=r"host device: use .*model.region\('runtime', ...\)"):
        getattr(model, kind)("runtime", PAGE_BYTES)
    assert model.regions("runtime") == []


@pytest.mark.parametrize("kind", [TorchAllocator, CupyAllocator])
@pytest.mark.parametrize("tag", ["weights", "kv_cache", "runtme"])
def test_other_tags_are_refused(model: Model, kind: Any, tag: str) -> None:
    with pytest.raises(UsageError, match="use one of runtime, cudagraph, workspace"):
        kind(OnHost(model), tag, PAGE_BYTES)


def refuse(*_: object) -> None:
    raise RuntimeError("refused by a stand-in")


def torch_with_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "MemPool", FakePool)
    monkeypatch.setattr(
        torch._C, "_cuda_customAllocator", lambda *functions: functions, raising=False
    )
    monkeypatch.setattr(gpupool.interop, "_torch_functions", {})
    return torch


def nothing_is_left_of(model: Model, kind: Any, wrong: type[Exception], match: str) -> None:
    before, footprint_bytes = model.regions("runtime"), model.footprint_bytes
    taken = RegionArena.slots_taken()
    with pytest.raises(wrong, match=match) as _caught:  # and kept: its traceback has references
        kind(OnHost(model), "runtime", PAGE_BYTES)
    assert model.regions("runtime") == before
    assert model.footprint_bytes == footprint_bytes
    assert RegionArena.slots_taken() == taken


@pytest.mark.parametrize("kind", [TorchAllocator, CupyAllocator])
def test_the_65th_allocator_leaves_no_region(
    model: Model, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_with_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    allocators = [kind(OnHost(model), "runtime", PAGE_BYTES) for _ in range(64)]
    nothing_is_left_of(model, kind, UsageError, "all 64 allocators")
    del allocators[5]
    gc.collect()
    kind(OnHost(model), "runtime", PAGE_BYTES)


@pytest.mark.parametrize("part", ["memory.CUDAPluggableAllocator", "MemPool"])
def test_what_torch_refuses_leaves_no_region(
    model: Model, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = torch_with_gpu(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(f"torch.cuda.{part}", refuse)
        nothing_is_left_of(model, TorchAllocator, RuntimeError, "refused by a stand-in")
    assert torch.cuda.MemPool is FakePool
    TorchAllocator(OnHost(model), "runtime", PAGE_BYTES)


@pytest.mark.parametrize("part", ["CFunctionAllocator", "MemoryPool"])
def test_what_cupy_refuses_leaves_no_region(
    model: Model, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with monkeypatch.context() as patched:
        patched.setattr(cupy.cuda, part, refuse)
        nothing_is_left_of(model, CupyAllocator, RuntimeError, "refused by a stand-in")
    CupyAllocator(OnHost(model), "runtime", PAGE_BYTES)


@pytest.mark.parametrize(("kind", "name"), [(TorchAllocator, "torch"), (CupyAllocator, "cupy")])
def test_a_missing_library_is_named_with_its_extra(
    model: Model, kind: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"pip install 'gpupool\[{name}\]'"):
        kind(OnHost(model), "runtime", PAGE_BYTES)
    assert model.regions("runtime") == []


def test_torch_without_a_gpu_is_refused(model: Model) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU")
    with pytest.raises(UsageError, match="sees no GPU"):
        TorchAllocator(OnHost(model), "runtime", PAGE_BYTES)


class FakePool:
    """What torch.cuda.MemPool is to Python: an object that keeps the allocator it is given."""

    def __init__(self, allocator: object) -> None:
        self.allocator = allocator


def test_torch_resolves_the_functions_and_the_pool_keeps_them(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_with_gpu(monkeypatch)
    allocator = TorchAllocator(OnHost(model), "runtime", PAGE_BYTES)
    pool = allocator.mem_pool
    malloc = TORCH_ALLOCATE(pool.allocator[0])  # what torch's own class looked up
    free = TORCH_FREE(pool.allocator[1])
    with model.resident():
        block = malloc(1000, 0, None)
        assert block == allocator.region.address
        assert allocator.statistics().live_bytes == 1024
    assert allocator.refused_frees == 0
    del allocator
    gc.collect()
    assert malloc(1, 0, None) == block + 1024  # whoever has the pool may allocate
    del pool
    gc.collect()
    assert malloc(1, 0, None) is None
    assert RegionArena.slots_taken() == 1  # torch has not freed all yet
    free(block, 1000, 0, None)
    free(block + 1024, 1, 0, None)


class FakeCupy(ModuleType):
    """What CupyAllocator uses of CuPy, which has no such thing without a GPU."""

    def __init__(self) -> None:
        super().__init__("cupy")

        class CUDARuntimeError(RuntimeError):
            def __init__(self, status: int) -> None:
                self.status = status

        class CFunctionAllocator:
            def __init__(self, param: int, malloc: int, free: int, owner: object) -> None:
                self.param, self.owner = param, owner
                self.functions = CUPY_ALLOCATE(malloc), CUPY_FREE(free)

            def malloc(self, size: int) -> SimpleNamespace:
                # A null pointer is passed on, as CuPy does.
                return SimpleNamespace(ptr=self.functions[0](self.param, size, 0) or 0)

        class MemoryPool:
            def __init__(self, allocator: Callable[[int], Any]) -> None:
                self.malloc = allocator
                self.freed = 0

            def free_all_blocks(self) -> None:
                self.freed += 1

        runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError)
        self.cuda = SimpleNamespace(
            CFunctionAllocator=CFunctionAllocator, MemoryPool=MemoryPool, runtime=runtime
        )


def test_cupy_is_told_that_there_is_no_room(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    allocator = CupyAllocator(OnHost(model), "workspace", PAGE_BYTES)
    pointer = allocator(PAGE_BYTES)
    assert pointer.ptr == allocator.region.address
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as caught:
        allocator(1)
    assert caught.value.status == 2  # cudaErrorMemoryAllocation
    allocator.free_all_blocks()
    cupy_pair(allocator._arena).free(pointer.ptr)
    assert allocator.statistics().live_bytes == 0


def test_the_real_cupy_takes_the_functions(model: Model) -> None:
    cupy = pytest.importorskip("cupy")
    allocator = CupyAllocator(OnHost(model), "workspace", PAGE_BYTES)
    assert isinstance(allocator._pool, cupy.cuda.MemoryPool)
