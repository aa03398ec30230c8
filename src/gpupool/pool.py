"""The embedded pool: several models of one process share a budget of device memory.

>>> import gpupool
>>> pool = gpupool.Pool(device="host", budget_bytes=4 << 20, page_bytes=2 << 20)
>>> a, b = pool.model("a"), pool.model("b")
>>> for model in (a, b):
...     _ = model.region("weights", 3 << 20)  # either fits, both do not
>>> with a.resident():
...     a.gate.is_resident, b.gate.is_resident
(True, False)
>>> with b.resident():
...     a.gate.is_resident, b.gate.is_resident
(False, True)
>>> pool.close()
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from gpupool._core import Driver, PagePool, SlabAllocator
from gpupool.checks import whole
from gpupool.devices import open_driver
from gpupool.embedded import EmbeddedArbiter
from gpupool.errors import UsageError
from gpupool.host_budget.place import host_budget
from gpupool.model import Model
from gpupool.scrubbing import scrubbing
from gpupool.session import Session
from gpupool.statistics import DriverStatistics, PagesStatistics, PoolStatistics
from gpupool.trace import MAX_EVENTS, observe, record

MIB = 1 << 20

_slab_owners = itertools.count(1 << 63)  # no model has such a number


class Pool:
    """A budget of device memory and the models that share it, all in this process.

    The model used least recently makes room for the one that is wanted. Thread safe.
    """

    def __init__(
        self,
        *,
        device: str,
        budget_bytes: int,
        page_bytes: int = 64 * MIB,
        scrub: str = "never",
        host_budget_bytes: int | None = None,
        parking_folder: str | Path | None = None,
        parking_limit_bytes: int | None = None,
        driver: Driver | None = None,
    ) -> None:
        """Open ``device`` (``host``, ``cuda``, ``cuda:1``); no memory is taken before it is used.

        ``scrub`` says when pages are zeroed beyond what a swap-in needs: ``never``, ``on-grant``
        (each before a model gets it) or ``background`` (free ones, by a thread, which makes later
        swap-ins shorter). Whatever it is, a model never reads what another left: what a swap-in
        does not restore it zeroes.

        ``host_budget_bytes`` is what images and KV blocks may have of host memory, by default what
        the system has. With a ``parking_folder``, which is made private if it is missing, images of
        models used least recently go to files there when others need the memory, of at most
        ``parking_limit_bytes`` in all, and come back before their model does; see docs/swap.md.
        ``driver`` replaces the device's own, as tests do.

        Raises UsageError for a page size that is no power of two or no multiple of the device's
        granularity, a budget below one page, another word for ``scrub``, a folder that others can
        write to or that has no use, and OSError for one that cannot be made.
        """
        budget_bytes = whole("budget_bytes", budget_bytes)
        page_bytes = whole("page_bytes", page_bytes)
        self._host = host_budget(host_budget_bytes, parking_folder, parking_limit_bytes)
        self.driver = open_driver(device) if driver is None else observe(driver)
        self.page_bytes = page_bytes
        self._pages = PagePool(self.driver, budget_bytes, page_bytes)
        self._scrubbing = scrubbing(scrub, self.driver, self._pages)
        self._arbiter = EmbeddedArbiter(self.driver, self._pages, self._scrubbing, self._host)
        self._models: dict[int, Model] = {}  # by the key of their session, until they are closed

    @property
    def free_bytes(self) -> int:
        """What of the budget no model holds."""
        return self._pages.free_pages * self.page_bytes

    def model(
        self,
        name: str,
        *,
        lease_timeout_s: float = 240.0,
        before_swap_out: Callable[[], None] | None = None,
        verify: str = "always",
        shares: bool = False,
    ) -> Model:
        """A new model without regions; ``verify`` and ``shares`` are as ``Model`` has them.

        Raises UsageError if the name is taken.

        >>> import ctypes, gpupool
        >>> pool = gpupool.Pool(device="host", budget_bytes=8 << 20, page_bytes=2 << 20)
        >>> model = pool.model("a")
        >>> weights = model.region("weights", 3 << 20)
        >>> cache = model.region("kv_cache", 1 << 20, capacity_bytes=8 << 20)
        >>> model.footprint_bytes, model.regions("kv_cache") == [cache]
        (6291456, True)
        >>> model.device_kind, model.device_ordinal
        ('host', 0)
        >>> with model.resident():
        ...     model.resize(cache, 3 << 20)  # at the address it has
        ...     _ = ctypes.memset(cache.address, 65, 3)
        ...     model.mark_written("kv_cache")
        ...     pool.free_bytes
        0
        >>> model.swap_out(), model.swap_out(), pool.free_bytes
        (True, False, 8388608)
        >>> model.swap_ins, model.last_swap_in.pages, model.last_swap_out.copied_bytes
        (1, 3, 6291456)
        >>> model.prefetch(), model.prefetch(), model.warm_bytes
        (True, False, 0)
        >>> with model.pinned():  # look at images
        ...     weights.image_bytes, model.parked_bytes
        (3145728, 0)
        >>> with model.resident():
        ...     ctypes.string_at(cache.address, 4)
        b'AAA\\x00'
        >>> _ = model.swap_out()
        >>> model.remove_region(weights)
        >>> model.footprint_bytes
        4194304
        >>> model.close()
        """
        session = self._arbiter.add(name, self._forget)
        try:
            model = Model(
                name,
                session,
                lease_timeout_s=lease_timeout_s,
                before_swap_out=before_swap_out,
                verify=verify,
                shares=shares,
            )
        except BaseException:
            session.close()
            raise
        self._models[session.key] = model
        return model

    def _forget(self, key: int) -> None:
        """A model has left."""
        self._models.pop(key, None)

    def session(self, name: str) -> Session:
        """Join as ``name`` for a Model made elsewhere. Raises UsageError if it is taken."""
        return self._arbiter.add(name)

    def create_pages(self, count: int | None = None) -> None:
        """Make pages now rather than when they are first needed: all of the budget, or ``count``.

        Raises UsageError if the budget has fewer, or DriverError; those made by then stay.

        >>> import gpupool
        >>> pool = gpupool.Pool(device="host", budget_bytes=8 << 20, page_bytes=2 << 20)
        >>> pool.create_pages(3)
        >>> pool.statistics().pages.created
        3
        """
        wanted = self._pages.total_pages if count is None else whole("count", count)
        try:
            self._pages.create_ahead(wanted)
        finally:  # also after an error: some may have been made
            self._arbiter.made_pages()

    def statistics(self) -> PoolStatistics:
        """What there is of pages, who has them, and what the driver did so far.

        >>> import gpupool
        >>> pool = gpupool.Pool(device="host", budget_bytes=4 << 20, page_bytes=2 << 20)
        >>> model = pool.model("a")
        >>> _ = model.region("workspace", 1 << 20)
        >>> with model.resident():
        ...     now = pool.statistics()
        >>> now.pages.owned, now.models[0].held_bytes, now.driver.calls["map"].calls
        (1, 2097152, 1)
        """
        return PoolStatistics(
            page_bytes=self.page_bytes,
            pages=PagesStatistics.of(self._pages),
            host_bytes=self._arbiter.host.bytes,
            models=self._arbiter.statistics(),
            driver=DriverStatistics.of(self.driver),
        )

    def trace(
        self, path: str | Path, *, max_events: int = MAX_EVENTS
    ) -> AbstractContextManager[None]:
        """Record a ``with`` block for https://ui.perfetto.dev and write it to ``path`` at its end.

        Driver calls, what each stream did when, lease waits and swaps. ``%p`` in the path is the
        process. Of more than ``max_events`` (64 bytes each) the rest is counted only. Raises
        UsageError where there is a trace already or no such folder, OSError if it is not written.

        >>> import gpupool, json, pathlib, tempfile
        >>> pool = gpupool.Pool(device="host", budget_bytes=4 << 20, page_bytes=2 << 20)
        >>> model = pool.model("a")
        >>> _ = model.region("workspace", 1 << 20)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "swap.json"
        ...     with pool.trace(path), model.resident():
        ...         pass
        ...     events = json.loads(path.read_text())["traceEvents"]
        >>> [e["name"] for e in events if e["name"].endswith(" a")]
        ['lease wait a', 'swap in a']
        """
        return record(self.driver, path, max_events)

    def slabs(
        self,
        block_bytes: Sequence[int],
        *,
        slab_bytes: int | None = None,
        slabs_max: int = 256,
        pinned: bool = False,
    ) -> SlabAllocator:
        """Blocks of the given sizes, in bytes, cut from slabs of this pool's pages; thread safe.

        A slab is made when it is needed, holds blocks of one size, and goes back once it is empty
        (``trim`` sees to the last ones). ``slab_bytes`` is a whole number of pages, by default one
        page; at most ``slabs_max`` slabs in all. ``pinned`` slabs are host memory that the
        device can copy from and to, and take no page. Pages in slabs are not revoked: a model that
        does not fit beside them waits. A slab begins as zeros, whoever had its pages before; a
        block holds those, or what an earlier block of the same allocator left. Raises UsageError if
        a slab does not hold 1 to 65536 blocks of each size, or for ``pinned`` ones of a pool with a
        budget of host memory.

        >>> import gpupool
        >>> pool = gpupool.Pool(device="host", budget_bytes=4 << 20, page_bytes=2 << 20)
        >>> slabs = pool.slabs([4096, 65536])
        >>> handle = slabs.allocate(5000)  # of the next larger size
        >>> slabs.address_of(handle) > 0, pool.free_bytes
        (True, 2097152)
        >>> slabs.free(handle)
        >>> slabs.free(handle)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gpupool.errors.StaleBlockError: block ... of slab 256 (generation 1) was freed already
        >>> slabs.trim()
        >>> pool.free_bytes
        4194304
        """
        bytes_each = self.page_bytes if slab_bytes is None else whole("slab_bytes", slab_bytes)
        sizes = [whole("block_bytes", size) for size in block_bytes]
        slabs_max = whole("slabs_max", slabs_max)
        if pinned:
            if self._host.limit_bytes is not None:
                raise UsageError(
                    "pinned slabs are on no account: take them of a pool without host_budget_bytes"
                )
            return SlabAllocator.on_host(self.driver, bytes_each, sizes, slabs_max)
        if bytes_each < 1 or bytes_each % self.page_bytes:
            raise UsageError(
                f"slab_bytes={slab_bytes}: a slab is a whole number of pages of {self.page_bytes}"
            )
        slabs = SlabAllocator.on_pages(
            self.driver,
            self._pages,
            next(_slab_owners),
            bytes_each // self.page_bytes,
            sizes,
            slabs_max,
        )
        self._arbiter.watch_slabs()
        return slabs

    def close(self) -> None:
        """Close every model; idempotent. The pages go when this object does.

        Of a closed model there is left what somebody holds: the addresses of tensors and regions,
        and host images that are looked at. Raises what ``Model.close`` does, once every
        model was tried: the first such error. Call it again for those that are still there then.
        """
        errors: list[Exception] = []
        try:
            for model in list(self._models.values()):
                try:
                    model.close()
                except Exception as error:
                    errors.append(error)
        finally:
            if self._scrubbing is not None:
                self._scrubbing.stop()
        if errors:
            raise errors[0]
