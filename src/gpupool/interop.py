"""Allocators of torch and CuPy that take their memory from a region of a model.

What such an allocator gives out is part of the model: it leaves with it and comes back to the same
addresses, so it must be touched inside ``with model.resident():`` alone. The tag of the region says
what becomes of the contents, as for every region: ``runtime`` and ``cudagraph`` are saved whole at
every swap-out, a ``workspace`` reads as zeros when it is back. ``weights`` and ``kv_cache`` are
refused, since only what is marked as written of those is saved, and an allocator cannot know.

On the ``host`` device neither library has allocators that could be replaced. A region there is a
tensor or an array already:

>>> import gpupool, numpy, torch
>>> pool = gpupool.Pool(device="host", budget_bytes=2 << 20, page_bytes=2 << 20)
>>> model = pool.model("a")
>>> region = model.region("runtime", 1 << 20)
>>> with model.resident():
...     array = numpy.asarray(region)
...     array[:3] = 7
>>> model.swap_out()
True
>>> with model.resident():
...     torch.from_dlpack(region)[:4].tolist()
[7, 7, 7, 0]
>>> model.torch_allocator("runtime", 1 << 20)  # doctest: +ELLIPSIS
Traceback (most recent call last):
gpupool.errors.UsageError: torch has no allocators to replace on the host device: use ...
>>> pool.close()
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import gpupool._core as _core
from gpupool._core import ArenaStatistics, Region, RegionArena
from gpupool.errors import UsageError

if TYPE_CHECKING:
    from cupy.cuda import MemoryPointer
    from torch.cuda import MemPool

_TAGS = ("runtime", "cudagraph", "workspace")

# Of each pair of functions in the extension, what torch knows of it: torch's pools refer to these
# without keeping them alive, for as long as any tensor lives. There are 64 pairs.
_torch_functions: dict[int, Any] = {}


class Owner(Protocol):
    """What has regions: a Model."""

    @property
    def device_kind(self) -> str:
        """``host`` or ``cuda``."""

    def region(self, tag: str, size_bytes: int, *, capacity_bytes: int = 0) -> Region:
        """Reserve addresses for ``size_bytes``."""

    def remove_region(self, region: Region) -> None:
        """Forget it again."""


class _Allocator:
    """A region and the blocks it is cut into."""

    def __init__(self, model: Owner, tag: str, size_bytes: int, capacity_bytes: int) -> None:
        self.region = model.region(tag, size_bytes, capacity_bytes=capacity_bytes)
        """Where the memory is; ``Model.resize`` makes it larger, or smaller where it is unused."""
        with self._nothing_left_on_error(model):
            self._arena = RegionArena(self.region)

    @contextlib.contextmanager
    def _nothing_left_on_error(
        self, model: Owner, given: list[RegionArena] | None = None
    ) -> Iterator[None]:
        """Remove the region if the block fails; ``given`` is what the library has of the arena."""
        try:
            yield
        except BaseException:
            # A region stays while its arena is there, to which the error's traceback may refer.
            vars(self).pop("_arena", None)
            if given is not None:
                given.clear()
            model.remove_region(self.region)
            raise

    def statistics(self) -> ArenaStatistics:
        """What of the region is in use, in bytes.

        That includes what the library has cached for later allocations.
        """
        return self._arena.statistics()

    @property
    def refused_frees(self) -> int:
        """Frees of what was not in use, or after the device had failed; 0 if all is well."""
        return self._arena.refused_frees


class TorchAllocator(_Allocator):
    """A pool of torch over a region; made by ``Model.torch_allocator``.

    Allocate in it, and use what was allocated, while the model is resident::

        buffers = model.torch_allocator("runtime", 1 << 30)
        with model.resident(), torch.cuda.use_mem_pool(buffers.mem_pool):
            scratch = torch.empty(1 << 20, device="cuda")

    torch asks for 2 MiB at a time for tensors of up to 1 MiB, 20 MiB for those of up to 10 MiB and
    whole multiples of 2 MiB for larger ones, so ``size_bytes`` needs some room to spare. When it
    has none, torch raises ``torch.cuda.OutOfMemoryError``; it never takes memory elsewhere. For
    CUDA graphs use the tag ``cudagraph`` and pass ``mem_pool.id`` as ``pool``.
    """

    def __init__(self, model: Owner, tag: str, size_bytes: int, capacity_bytes: int = 0) -> None:
        """Add a region of ``tag`` to ``model``, which must be out.

        Raises UsageError on the host device, for another tag, without torch or its CUDA build, or
        when 64 allocators are in use; and what ``Model.region`` raises.
        """
        _check(model, tag, "torch", "use torch.from_dlpack(model.region({tag!r}, ...))")
        torch = _library("torch")
        if not torch.cuda.is_available():
            raise UsageError("this torch sees no GPU: install a CUDA build of torch")
        super().__init__(model, tag, size_bytes, capacity_bytes)
        with self._nothing_left_on_error(model):
            slot = self._arena.slot
            if slot not in _torch_functions:
                _torch_functions[slot] = torch.cuda.memory.CUDAPluggableAllocator(
                    _core.__file__, *self._arena.torch_symbols
                )
            self.mem_pool: MemPool = torch.cuda.MemPool(_torch_functions[slot].allocator())
            """For ``torch.cuda.use_mem_pool``."""
        # Whoever holds the pool may allocate from it: until then the functions are nobody else's.
        self.mem_pool._gpupool_arena = self._arena


class CupyAllocator(_Allocator):
    """An allocator of CuPy over a region; made by ``Model.cupy_allocator``.

    Allocate with it, and use what was allocated, while the model is resident::

        allocator = model.cupy_allocator("workspace", 1 << 30)
        with model.resident(), cupy.cuda.using_allocator(allocator):
            scratch = cupy.empty(1 << 20)

    Freed arrays are kept for later ones, as CuPy's own allocator does, until ``free_all_blocks``.
    When there is no room, CuPy raises ``cupy.cuda.memory.OutOfMemoryError``.
    """

    def __init__(self, model: Owner, tag: str, size_bytes: int, capacity_bytes: int = 0) -> None:
        """Add a region of ``tag`` to ``model``, which must be out.

        Raises UsageError on the host device, for another tag, without CuPy, or when 64 allocators
        are in use; and what ``Model.region`` raises.
        """
        _check(model, tag, "CuPy", "use numpy.asarray(model.region({tag!r}, ...))")
        cupy = _library("cupy")
        super().__init__(model, tag, size_bytes, capacity_bytes)
        out_of_memory = cupy.cuda.runtime.CUDARuntimeError
        owner = [self._arena]
        with self._nothing_left_on_error(model, owner):
            functions = cupy.cuda.CFunctionAllocator(*self._arena.cupy_functions, owner)

            def allocate(size_bytes: int) -> MemoryPointer:
                pointer = functions.malloc(size_bytes)
                if pointer.ptr == 0 and size_bytes > 0:  # CuPy does not look
                    raise out_of_memory(_CUDA_ERROR_MEMORY_ALLOCATION)
                return pointer

            self._pool = cupy.cuda.MemoryPool(allocate)

    def __call__(self, size_bytes: int) -> MemoryPointer:
        """What CuPy calls for memory."""
        return self._pool.malloc(size_bytes)

    def free_all_blocks(self) -> None:
        """Give what freed arrays have left back to the region."""
        self._pool.free_all_blocks()


_CUDA_ERROR_MEMORY_ALLOCATION = 2  # upon it CuPy gives up what it has cached and tries again


def _check(model: Owner, tag: str, library: str, instead: str) -> None:
    if model.device_kind != "cuda":
        raise UsageError(
            f"{library} has no allocators to replace on the host device: {instead.format(tag=tag)}"
        )
    if tag not in _TAGS:
        raise UsageError(
            f"{library} cannot allocate from a region of tag {tag!r}: use one of {', '.join(_TAGS)}"
        )


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name} cannot be imported ({error}): pip install 'gpupool[{name}]'"
        ) from error
