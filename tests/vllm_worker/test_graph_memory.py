"""Where an engine's CUDA graphs are captured into, on memory that can be looked at."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool import Model, Pool
from gpupool._core import Region, RegionArena
from gpupool.errors import UsageError
from gpupool.interop import _Allocator

torch = pytest.importorskip("torch")
platforms = pytest.importorskip("vllm.platforms")

from async_engine import FakeWorker, kv_cache_config, vllm_config  # noqa: E402
from torch_memory import allocate, free  # noqa: E402

from gpupool.vllm import compat, pool_worker, settings, worker  # noqa: E402
from gpupool.vllm.graph_memory import GraphMemory  # noqa: E402

POOL_ID = (7, 1)
PAGE_BYTES, BUDGET_PAGES = 2 << 20, 4


def pool_of() -> Pool:
    return Pool(device="host", budget_bytes=BUDGET_PAGES * PAGE_BYTES, page_bytes=PAGE_BYTES)


def memory_of(region: Region) -> memoryview:
    return memoryview((ctypes.c_uint8 * region.bytes).from_address(region.address)).cast("B")


class OnGpu:
    """A model on the host that says it is on a GPU, and takes any pair of functions for torch's."""

    device_kind = "cuda"

    def __init__(self, model: Model) -> None:
        self.model = model
        self.resize = model.resize

    def torch_allocator(self, tag: str, size_bytes: int) -> Any:
        made: Any = _Allocator(self.model, tag, size_bytes, 0)
        made.mem_pool = SimpleNamespace(id=POOL_ID)
        return made


def graphs_of(model: Model, size_bytes: int) -> tuple[GraphMemory, RegionArena]:
    graphs = GraphMemory(cast("Model", OnGpu(model)), size_bytes)
    return graphs, arena_of(graphs)


def arena_of(graphs: GraphMemory) -> RegionArena:
    arena: RegionArena = graphs._allocator._arena  # type: ignore[attr-defined]
    return arena


@pytest.fixture
def captured_into() -> Iterator[Any]:
    """Where the platform has graphs captured into, which nothing has changed at the end."""
    own = type(platforms.current_platform)
    before = own._global_graph_pool
    yield lambda: own._global_graph_pool
    assert own._global_graph_pool == before


@given(sizes=st.lists(st.integers(1, PAGE_BYTES), max_size=12), seed=st.integers(0, 1000))
def test_what_graphs_leave_over_goes_back_and_the_rest_is_saved(
    sizes: list[int], seed: int
) -> None:
    pool = pool_of()
    model = pool.model("a")
    room = BUDGET_PAGES * PAGE_BYTES
    graphs, arena = graphs_of(model, room)
    region = graphs._allocator.region
    chance, expected = random.Random(seed), {}
    with model.resident():
        for size in sizes:
            if block := allocate(arena, size):
                at = block - region.address
                expected[at] = chance.randbytes(min(size, 64))
                memory_of(region)[at : at + len(expected[at])] = expected[at]
        ends = [at + size for at, size in zip(expected, sizes, strict=False)]
        left = graphs.fit()
        assert left == (region.bytes if expected else 0)
        end = max(ends, default=1)
        assert end <= region.bytes < end + 512
        assert pool.free_bytes == room - region.span_bytes
    model.swap_out()
    other = pool.model("b")
    other.region("workspace", room)
    with other.resident():
        memory_of(other.regions("workspace")[0])[:] = b"\xee" * room
    with model.resident():
        for at, content in expected.items():
            assert memory_of(region)[at : at + len(content)] == content
    for at in expected:
        free(arena, region.address + at)
    pool.close()


def test_gaps_between_blocks_stay(captured_into: Any) -> None:
    model = pool_of().model("a")
    graphs, arena = graphs_of(model, BUDGET_PAGES * PAGE_BYTES)
    with model.resident():
        blocks = [allocate(arena, PAGE_BYTES) for _ in range(BUDGET_PAGES)]
        for index in (0, 1):
            free(arena, blocks[index] or 0)
        assert graphs.fit() == BUDGET_PAGES * PAGE_BYTES


def test_too_little_room_says_what_to_raise(captured_into: Any) -> None:
    model = pool_of().model("a")
    graphs, arena = graphs_of(model, PAGE_BYTES)
    before = captured_into()
    with pytest.raises(torch.OutOfMemoryError), graphs.used():
        assert captured_into() == POOL_ID
        raise torch.OutOfMemoryError("elsewhere")
    assert captured_into() == before
    too_little = f"{PAGE_BYTES} bytes of 'cudagraph_bytes': raise it"
    with model.resident(), pytest.raises(UsageError, match=too_little), graphs.used():
        assert allocate(arena, 2 * PAGE_BYTES) is None
        raise torch.OutOfMemoryError("as torch does then")
    with model.resident(), pytest.raises(UsageError, match=too_little), graphs.used():
        try:
            assert allocate(arena, 2 * PAGE_BYTES) is None
            raise torch.OutOfMemoryError("inside a capture")
        finally:
            raise RuntimeError("the capture cannot end") from None
    with pytest.raises(RuntimeError, match="anything else"), graphs.used():
        raise RuntimeError("anything else")


def test_a_model_leaves_though_torch_keeps_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[bool] = []

    def refuse() -> None:
        refused.append(True)
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(Model, "device_kind", "cuda")
    leaving = SimpleNamespace(_pool_wait_for_device=pool_worker.PoolWorker._pool_wait_for_device)
    model = pool_of().model("a", before_swap_out=lambda: leaving._pool_wait_for_device(leaving))
    model.region("weights", PAGE_BYTES)
    leaving.pool_model = model
    with model.resident():
        pass
    assert model.swap_out() and refused


class Capturing(FakeWorker):
    """Asks the platform where to, wherever some version of vLLM does."""

    def __init__(self, config: Any, seed: int) -> None:
        self.asked: list[Any] = []
        super().__init__(config, seed)

    def _ask(self) -> None:
        self.asked.append(platforms.current_platform.get_global_graph_pool())

    def load_model(self) -> None:
        self._ask()
        super().load_model()

    def determine_available_memory(self) -> int:
        self._ask()
        return super().determine_available_memory()

    def initialize_from_config(self, config: Any) -> None:
        self._ask()
        super().initialize_from_config(config)

    def compile_or_warm_up_model(self) -> float:
        self._ask()
        self.block = allocate(arena_of(self.graphs), 5000)
        return super().compile_or_warm_up_model()


def config(**more: Any) -> Any:
    embedded = {"device": "host", "budget_bytes": 16 << 20, "page_bytes": PAGE_BYTES, "model": "a"}
    return vllm_config({**embedded, **more})


def test_all_of_an_engine_captures_there(
    monkeypatch: pytest.MonkeyPatch, captured_into: Any
) -> None:
    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(
        pool_worker,
        "GraphMemory",
        lambda model, size: graphs_of(model, size)[0],
    )
    engine = worker.pooled(Capturing)(config(cudagraph_bytes=8 << 20), 1)
    engine.load_model()
    graphs = engine._pool_graphs
    assert graphs is not None
    engine.graphs = graphs
    engine.determine_available_memory()
    engine.initialize_from_config(kv_cache_config())
    engine.compile_or_warm_up_model()
    assert engine.asked == [POOL_ID] * 4
    region = graphs._allocator.region
    assert 5000 <= region.bytes < 6000
    assert not engine.pool_model.gate.is_resident
    free(arena_of(graphs), engine.block)
    engine.pool_model.close()


def test_what_torch_only_caches_is_given_back_before_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached_bytes = [4096]
    monkeypatch.setattr(torch.cuda, "empty_cache", cached_bytes.clear)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 100 + sum(cached_bytes))
    assert compat.torch_bytes(torch.device("cuda:1")) == 100


@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_torch_keeps_outside_the_pool_is_said(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch, captured_into: Any
) -> None:
    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(pool_worker, "GraphMemory", lambda model, size: graphs_of(model, size)[0])
    engine = worker.pooled(Capturing)(config(cudagraph_bytes=8 << 20), 1)
    engine.device = torch.device("cuda:0")
    engine.load_model()
    assert engine._pool_graphs is not None
    engine.graphs = engine._pool_graphs
    engine.determine_available_memory()
    engine.initialize_from_config(kv_cache_config())
    outside_bytes, cached = 12_345_678, [True]
    done: list[Any] = []

    def reserved(device: Any) -> int:
        """As torch counts: segments in the pool as well, and what it only caches."""
        done.append(("reserved", device, engine.pool_model.gate.is_resident))
        in_pool = arena_of(engine.graphs).statistics().live_bytes
        assert in_pool > 0
        return outside_bytes + in_pool + (1 << 20) * len(cached)

    monkeypatch.setattr(torch.cuda, "empty_cache", cached.clear)
    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    said: list[str] = []
    monkeypatch.setattr(pool_worker.logger, "info", lambda text, *rest: said.append(text % rest))
    if on_gpu:
        monkeypatch.setattr(Model, "device_kind", "cuda")
    engine.compile_or_warm_up_model()
    about_torch = [line for line in said if "torch" in line]
    if on_gpu:
        assert done == [("reserved", torch.device("cuda:0"), False)]
        assert about_torch == [
            f"gpupool: torch keeps {outside_bytes} bytes on the GPU, outside the pool"
        ]
    else:
        assert done == [] and about_torch == []
    free(arena_of(engine.graphs), engine.block)
    engine.pool_model.close()


def test_an_engine_without_a_gpu_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    engine = worker.pooled(FakeWorker)(config(cudagraph_bytes=1), 1)
    with pytest.raises(UsageError, match="for engines on a GPU"):
        engine.load_model()
    engine.pool_model.close()
