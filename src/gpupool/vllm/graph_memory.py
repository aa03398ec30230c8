"""Memory of an engine's CUDA graphs in a region of its model, with which it leaves and comes back.

Without one it is torch's, and stays on the device for as long as the engine lives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gpupool.errors import UsageError
from gpupool.model import Model
from gpupool.vllm import compat


class GraphMemory:
    """Where vLLM captures an engine's graphs, and what they leave over of it."""

    def __init__(self, model: Model, size_bytes: int) -> None:
        """Have room for ``size_bytes`` in a model that is out.

        Raises UsageError off the GPU, and what ``Model.torch_allocator`` raises.
        """
        if model.device_kind != "cuda":
            raise UsageError(
                "'cudagraph_bytes' is for engines on a GPU: others have no such graphs"
            )
        self._model = model
        self._size_bytes = size_bytes
        self._allocator = model.torch_allocator("cudagraph", size_bytes)

    @contextmanager
    def used(self) -> Iterator[None]:
        """What is made to capture graphs in this ``with`` block captures them there.

        Raises UsageError where the room was too small for them.
        """
        before = self._allocator.statistics().refused
        try:
            with compat.graphs_captured_into(self._allocator.mem_pool.id):
                yield
        except Exception as error:  # that torch has no memory, or that a capture could not end
            if self._allocator.statistics().refused == before:
                raise
            raise UsageError(
                f"the CUDA graphs of this model need more than the {self._size_bytes} bytes of "
                "'cudagraph_bytes': raise it, or leave it out to have them outside the pool"
            ) from error

    @property
    def torch_bytes(self) -> int:
        """What torch has there, for graphs and to cache."""
        return self._allocator.statistics().live_bytes

    def fit(self) -> int:
        """Give back what no graph was captured into, and say how many bytes are left.

        All of the rest is saved at every swap-out. 0 if there is no graph: a region has one byte
        at least.
        """
        region, found = self._allocator.region, self._allocator.statistics()
        # Blocks are cut from the front, so that what is free is behind them but for gaps.
        end = region.bytes - found.largest_free_bytes
        with suppress(UsageError):  # as when the largest gap is one between blocks
            self._model.resize(region, max(1, end))
        return region.bytes if found.live_blocks > 0 else 0
