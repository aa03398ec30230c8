"""A paged KV cache in a model's memory, whose blocks follow the model's swaps.

>>> import gpupool
>>> from gpupool.kernels.layout import BlockLayout
>>> from gpupool.kv.paged import PagedKv
>>> pool = gpupool.Pool(device="host", budget_bytes=4 << 20, page_bytes=2 << 20)
>>> model = pool.model("a")
>>> layout = BlockLayout.of([(0, 4096, 4096), (1 << 20, 4096, 4096)], blocks=256)
>>> kv = PagedKv(model, layout, region_bytes=2 << 20, dtype="float16")
>>> with model.resident():
...     kv.write([3, 5])  # then the step that writes them
>>> model.swap_out(), kv.cache.statistics().away
(True, 2)
>>> kv.bring_first([5])
>>> with model.resident():
...     kv.require([5])  # then the step that reads it
>>> pool.close()
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator

from gpupool._core import Driver
from gpupool.errors import DaemonUnavailableError, DamagedMemoryError, UsageError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import as_blocks
from gpupool.kv.cache import KvCache
from gpupool.kv.digests import BlockDigests
from gpupool.kv.mover import Mover
from gpupool.kv.planned_mover import planned_mover
from gpupool.kv.store import KvIdentity, KvStore
from gpupool.model import Model
from gpupool.session import BlocksMoved


class PagedKv:
    """The region, the host copies, and what is known of each block."""

    def __init__(
        self,
        model: Model,
        layout: BlockLayout,
        *,
        region_bytes: int,
        dtype: str,
        store_bytes: int | None = None,
        fills_up: bool = False,
        mover: Callable[[Driver, BlockLayout, int, int], Mover] = planned_mover,
    ) -> None:
        """Add a region of ``region_bytes`` to a model that is out, for blocks of ``layout``.

        Their copies take at most ``store_bytes`` of host memory, by default as much as all blocks
        need; memory is taken as blocks are written. With ``fills_up``, as where nobody forgets any
        block, less than that is refused. ``mover`` makes what moves them,
        from the device, the layout, and the address and bytes of the region; by default that is
        what ``gpupool tune`` found best on this device. Raises UsageError for a layout that reaches
        beyond the region or a store without room for a block, and what ``Model.region`` does.
        """
        if layout.extent_bytes > region_bytes:
            raise UsageError(
                f"the blocks reach over {layout.extent_bytes} bytes and the region has "
                f"{region_bytes}"
            )
        self._model = model
        self._blocks = layout.blocks
        self._first: Iterable[int] = ()
        self._there = False
        self._told_moved = BlocksMoved(0, 0.0, 0, 0.0, 0)
        identity = KvIdentity(model.name, 0, dtype, layout)
        store = KvStore(model, identity, budget_bytes=store_bytes)
        if fills_up and store.rows_max < layout.blocks:
            raise UsageError(
                f"a KV store of {store_bytes} bytes has room for {store.rows_max} blocks of "
                f"{layout.row_bytes} bytes, and a prefix cache comes to fill all {layout.blocks}: "
                "give it more, or switch prefix caching off"
            )
        self.region = model.region("kv_cache", region_bytes, image=False)
        try:
            at = self.region.address
            moves = mover(model.driver, layout, at, region_bytes)
            digests = BlockDigests(model.driver, layout, at, model.verify)
            self._verifies = digests.verifies
            self.cache = KvCache(store, moves, digests, identity)
            model.add_keeper(self)
        except BaseException:
            model.remove_region(self.region)
            raise

    def bring_first(self, blocks: Iterable[int]) -> None:
        """If the model is out, its next swap-in brings these before all others."""
        self._first = blocks

    def write(self, blocks: Iterable[int]) -> None:
        """A step is about to write to these blocks; they are there when this returns.

        Where the store is full the model stays until there is room: its next swap-out raises
        KvStoreFullError. Raises what ``require`` does.
        """
        with self._told():
            self.cache.written(blocks, unbacked=True)

    def require(self, blocks: Iterable[int]) -> None:
        """A step is about to read these blocks; they are there when this returns.

        Raises UsageError while the model is out, DriverError, and DamagedMemoryError for a block
        that does not come back as it was saved, until it is forgotten or the model comes in anew.
        """
        with self._told():
            self.cache.require(blocks)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What a step finds damaged the pool hears of, as of what a swap-in finds."""
        try:
            yield
        except DamagedMemoryError as error:
            self._model.damaged(str(error))
            raise

    # As a keeper.

    def arrived(self) -> None:
        """Begin to bring back what was saved.

        Returns once it is enqueued or, where it is verified, what the step reads is there. Raises
        DriverError, or DamagedMemoryError for a block of that step.
        """
        named, self._first = self._first, ()
        first = as_blocks(named, self._blocks)
        self.cache.restore(first)
        if self._verifies:
            self.cache.require(first)
        self._there = True

    def leaving(self) -> None:
        """See that there is room for what was written. Raises KvStoreFullError or DriverError."""
        self.cache.back()

    def save(self) -> None:
        """Save what was written since the last save. Raises DriverError."""
        if self._there:
            self.cache.save()
        self.cache.drain()

    def settle(self) -> None:
        """Return when nothing is in flight. Raises DriverError."""
        self.cache.drain()

    def forsake(self) -> None:
        """The memory is gone, and nothing of it will be read."""
        self.cache.forget_all()
        self.left()

    def left(self) -> None:
        """The memory is gone."""
        self._there = False
        self.cache.lost()
        self._tell_moved()

    def _tell_moved(self) -> None:
        of = self.cache.statistics()
        total = BlocksMoved(
            of.bytes_saved, of.saving_s, of.bytes_restored, of.restoring_s, of.bytes_recopied
        )
        new = BlocksMoved(*map(operator.sub, total, self._told_moved))
        if any(new):
            self._model.blocks_moved(new)
        self._told_moved = total

    def close(self) -> None:
        """Forget everything and give the host memory back."""
        with contextlib.suppress(DaemonUnavailableError):
            self.cache.close()
