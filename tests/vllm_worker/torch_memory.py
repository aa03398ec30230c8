"""torch's memory on a GPU, as far as allocators over regions meet it, on memory of the host."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpupool import Model, _core
from gpupool._core import RegionArena
from gpupool.interop import _Allocator

_SIZE, _INT, _POINTER = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p


def functions(arena: RegionArena) -> tuple[Callable[[int], int | None], Callable[[int], None]]:
    """What torch calls for a block, and to give one back; they do not keep the arena."""
    library = ctypes.CDLL(_core.__file__)
    malloc, release = (getattr(library, name) for name in arena.torch_symbols)
    malloc.argtypes, malloc.restype = [_SIZE, _INT, _POINTER], _POINTER
    release.argtypes, release.restype = [_POINTER, _SIZE, _INT, _POINTER], None
    return lambda size_bytes: malloc(size_bytes, 0, None), lambda block: release(block, 1, 0, None)


def allocate(arena: RegionArena, size_bytes: int) -> int | None:
    """As torch asks for a block."""
    return functions(arena)[0](size_bytes)


def free(arena: RegionArena, block: int) -> None:
    """As torch gives one back."""
    functions(arena)[1](block)


class _Blocks:
    """Of one pool: what is freed is kept for later, until it goes and the cache is emptied."""

    def __init__(self, arena: RegionArena) -> None:
        self.allocate, self._free = functions(arena)
        self.cached: list[int] = []

    def give_back(self) -> None:
        while self.cached:
            self._free(self.cached.pop())


class MemPool:
    """One of torch's."""

    def __init__(self, arena: RegionArena) -> None:
        self.arena = arena
        self.blocks = _Blocks(arena)


class TorchMemory:
    """Where tensors are made, and what torch has cached."""

    def __init__(self) -> None:
        self.routed: list[MemPool] = []
        self._pools: list[tuple[weakref.ref[MemPool], _Blocks]] = []

    def allocator(self, model: Model, tag: str, size_bytes: int) -> Any:
        """What ``Model.torch_allocator`` makes on a GPU."""
        made: Any = _Allocator(model, tag, size_bytes, 0)
        made.mem_pool = MemPool(made._arena)
        self._pools.append((weakref.ref(made.mem_pool), made.mem_pool.blocks))
        return made

    @contextmanager
    def use_mem_pool(self, pool: MemPool) -> Iterator[None]:
        """As torch has it."""
        self.routed.append(pool)
        try:
            yield
        finally:
            self.routed.remove(pool)

    def empty_cache(self) -> None:
        """Gives back what pools have that have gone."""
        if not self.routed:
            for pool, blocks in self._pools:
                if pool() is None:
                    blocks.give_back()

    def full(self, count: int, value: int) -> torch.Tensor:
        """A tensor of 64-bit integers."""
        if not self.routed:
            return torch.full((count,), value)
        blocks = self.routed[-1].blocks
        block = blocks.allocate(8 * count)
        if block is None:
            raise torch.OutOfMemoryError("as torch has it")
        memory = (ctypes.c_int64 * count).from_address(block)
        weakref.finalize(memory, blocks.cached.append, block)
        return torch.frombuffer(memory, dtype=torch.int64).fill_(value)
