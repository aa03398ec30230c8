"""The functions that torch and CuPy are given, on memory that can be looked at."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pool_bench import pool_of

from gpupool import Model, _core
from gpupool._core import RegionArena

TORCH_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
TORCH_FREE = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p
)
CUPY_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
CUPY_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


@contextlib.contextmanager
def model_alone() -> Iterator[Model]:
    """The only model of a pool, and nothing left behind at the end."""
    assert RegionArena.slots_taken() == 0
    pool = pool_of()
    yield pool.model("a")
    pool.close()
    gc.collect()
    assert RegionArena.slots_taken() == 0


@dataclass
class Pair:
    """What a library is given, as it calls it."""

    allocate: Callable[[int], int | None]
    free: Callable[[int], None]


def torch_pair(arena: RegionArena) -> Pair:
    """The functions as torch.cuda.memory.CUDAPluggableAllocator finds them."""
    library = ctypes.CDLL(_core.__file__)
    allocate, free = (
        ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in arena.torch_symbols
    )
    assert allocate is not None
    assert free is not None
    malloc, release = TORCH_ALLOCATE(allocate), TORCH_FREE(free)
    return Pair(lambda size: malloc(size, 0, None), lambda block: release(block, 1, 0, None))


def cupy_pair(arena: RegionArena) -> Pair:
    parameter, allocate, free = arena.cupy_functions
    malloc, release = CUPY_ALLOCATE(allocate), CUPY_FREE(free)
    return Pair(lambda size: malloc(parameter, size, 0), lambda block: release(parameter, block, 0))
