"""Blocks of a region, from the functions that torch and CuPy call."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator

import pytest
from interop_bench import Pair, cupy_pair, model_alone, torch_pair
from pool_bench import PAGE_BYTES

from gpupool import Model, _core
from gpupool._core import RegionArena
from gpupool.errors import UsageError


@pytest.fixture
def model() -> Iterator[Model]:
    with model_alone() as model:
        yield model


PAIRS = pytest.mark.parametrize("pair_of", [torch_pair, cupy_pair])


@PAIRS
@pytest.mark.parametrize("tag", ["runtime", "cudagraph", "workspace"])
def test_contents_over_a_swap(
    model: Model, tag: str, pair_of: Callable[[RegionArena], Pair]
) -> None:
    region = model.region(tag, PAGE_BYTES)
    arena = RegionArena(region)
    pair = pair_of(arena)
    blocks = []
    with model.resident():
        while (block := pair.allocate(70_000)) is not None:
            assert block % 512 == 0
            assert region.address <= block <= region.address + region.bytes - 70_000
            ctypes.memset(block, 1 + len(blocks), 70_000)
            blocks.append(block)
    assert len(blocks) == PAGE_BYTES // 70_144
    assert len(set(blocks)) == len(blocks)
    assert arena.statistics().refused == 1
    model.swap_out()
    with model.resident():
        for index, block in enumerate(blocks):
            value = 0 if tag == "workspace" else 1 + index
            assert ctypes.string_at(block, 70_000) == bytes([value]) * 70_000
            pair.free(block)
    statistics = arena.statistics()
    assert statistics.live_bytes == 0
    assert statistics.largest_free_bytes == PAGE_BYTES
    assert statistics.peak_bytes == len(blocks) * 70_144
    assert arena.refused_frees == 0


@PAIRS
def test_threads_allocate_and_free(model: Model, pair_of: Callable[[RegionArena], Pair]) -> None:
    arena = RegionArena(model.region("runtime", PAGE_BYTES))
    pair = pair_of(arena)
    wrong: list[str] = []

    def work(value: int) -> None:
        for size in range(1000, 1200):
            block = pair.allocate(size)
            if block is None:
                wrong.append("no room")
                continue
            ctypes.memset(block, value, size)
            if ctypes.string_at(block, size) != bytes([value]) * size:
                wrong.append("overwritten")
            pair.free(block)

    with model.resident():
        threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
            assert not thread.is_alive()
    assert wrong == []
    assert arena.statistics().live_blocks == 0


def test_wrong_frees_are_counted_and_named(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    arena = RegionArena(model.region("runtime", PAGE_BYTES))
    pair = torch_pair(arena)
    block = pair.allocate(1000)
    assert block is not None
    pair.free(block)
    pair.free(block)
    pair.free(block + 512)
    assert arena.refused_frees == 2
    said = capfd.readouterr().err
    assert hex(block) in said
    assert hex(block + 512) in said


def test_another_device_gets_nothing(model: Model) -> None:
    arena = RegionArena(model.region("runtime", PAGE_BYTES))
    library = ctypes.CDLL(_core.__file__)
    allocate = getattr(library, arena.torch_symbols[0])
    allocate.restype = ctypes.c_void_p
    assert allocate(ctypes.c_ssize_t(512), 1, None) is None


def test_the_room_follows_the_region(model: Model) -> None:
    region = model.region("runtime", PAGE_BYTES, capacity_bytes=2 * PAGE_BYTES)
    pair = torch_pair(arena := RegionArena(region))
    with model.resident():
        first = pair.allocate(PAGE_BYTES)
        assert first is not None
        assert pair.allocate(1) is None
        model.resize(region, 2 * PAGE_BYTES)
        block = pair.allocate(1)
        assert block == region.address + PAGE_BYTES
        with pytest.raises(UsageError, match="in use beyond the first"):
            model.resize(region, PAGE_BYTES)
        assert region.bytes == 2 * PAGE_BYTES
        pair.free(block)
        model.resize(region, PAGE_BYTES)
        assert pair.allocate(1) is None
        pair.free(first)
    assert arena.statistics().limit_bytes == PAGE_BYTES


def test_a_region_is_shared_out_once(model: Model) -> None:
    region = model.region("runtime", PAGE_BYTES)
    arena = RegionArena(region)
    with pytest.raises(UsageError, match="shared out"):
        RegionArena(region)
    block = torch_pair(arena).allocate(1)
    assert block is not None
    pair = torch_pair(arena)
    del arena
    with pytest.raises(UsageError, match="shared out"):  # the block is still in use
        RegionArena(region)
    pair.free(block)
    assert RegionArena(region).slot == 0


def test_allocators_run_out(model: Model) -> None:
    arenas = [RegionArena(model.region("workspace", 512)) for _ in range(64)]
    with pytest.raises(UsageError, match="all 64 allocators"):
        RegionArena(model.region("workspace", 512))
    assert sorted(arena.slot for arena in arenas) == list(range(64))
    assert len({arena.torch_symbols for arena in arenas}) == 64
