"""One model's memory: regions at stable addresses that come in and go out as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn, cast

from gpupool._core import ModelMemory, Region, SwapReport, Tag
from gpupool.checks import WHOLE_MAX, seconds, whole
from gpupool.errors import DaemonUnavailableError, UsageError
from gpupool.gate import Gate
from gpupool.host_images import host_memory, in_system_pages, lacks_image
from gpupool.interop import CupyAllocator, TorchAllocator
from gpupool.session import Session
from gpupool.trace import Values, span


class Model:
    """The memory of one model in a pool.

    Make one with ``Pool.model``. Add regions while it is out, use them inside
    ``with model.resident():``. Addresses and tensors over them stay valid for the life of the
    model; what is behind them is there only while it is resident.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        *,
        lease_timeout_s: float = 240.0,
        min_steps: int = 0,
        before_swap_out: Callable[[], None] | None = None,
    ) -> None:
        """Join the pool behind ``session``, which this model owns from now on.

        ``before_swap_out`` runs when no step is open and nothing may touch the memory any more:
        it waits for the device and marks what was written.
        """
        lease_timeout_s = seconds("lease_timeout_s", lease_timeout_s)
        self.name = name
        self._session = session
        self._memory = ModelMemory(session.driver, session.page_bytes)
        self._regions: list[Region] = []
        self._declared = 0
        self._before_swap_out = before_swap_out
        self.gate = Gate(self, lease_timeout_s=lease_timeout_s, min_steps=min_steps)
        self.swap_ins = 0
        self.last_swap_in: SwapReport | None = None
        self.last_swap_out: SwapReport | None = None
        session.bind(self.gate)

    def region(self, tag: str, size_bytes: int, *, capacity_bytes: int = 0) -> Region:
        """Reserve addresses (and host memory) for ``size_bytes`` of device memory.

        Addresses are kept for ``capacity_bytes``, up to which ``resize`` can make it grow.

        ``tag`` says what a swap-out saves: ``weights`` once, and then what was written (see
        ``resident``); ``kv_cache`` what was written; ``runtime`` and ``cudagraph`` everything;
        ``workspace`` nothing. What was not saved reads as zeros afterwards. Raises UsageError
        unless the model is out, and DriverError or HostMemoryError if there is no room.
        """
        kind = Tag.__members__.get(tag)
        if kind is None:
            raise UsageError(f"unknown tag {tag!r}: use one of {', '.join(Tag.__members__)}")
        size_bytes = whole("size_bytes", size_bytes, least=-WHOLE_MAX)
        if size_bytes < 1:
            raise UsageError("a region must have at least one byte")
        capacity_bytes = whole("capacity_bytes", capacity_bytes)
        if self._memory.resident:
            raise UsageError("a region can be added only while its model is out")
        image_bytes = 0 if kind is Tag.workspace else in_system_pages(size_bytes)
        with host_memory(self._session, image_bytes) as fd:
            region = self._memory.add_region(kind, size_bytes, fd, capacity_bytes)
        self._regions.append(region)
        return region

    def remove_region(self, region: Region) -> None:
        """Forget a region of a model that is out, and what is in it.

        Tensors over it keep their addresses, behind which nothing comes any more. Raises
        UsageError unless the model is out, for a region of another model, or while an allocator
        takes memory from it.
        """
        self._require_own(region)
        self._memory.remove_region(region)
        self._regions = [mine for mine in self._regions if mine is not region]
        self._declared = 0
        if region.image_bytes > 0:
            with contextlib.suppress(DaemonUnavailableError):
                self._session.return_host_memory(region.image_bytes)

    def resize(self, region: Region, size_bytes: int) -> None:
        """Make a region of this model ``size_bytes`` long, at the addresses it has.

        What it gains reads as zeros, what it loses is lost; tensors over what is lost must not be
        touched any more. A resident model takes the pages it needs from those that are free, and
        gives back what it does not need at once; no step of another thread should run meanwhile.
        Raises UsageError beyond the region's capacity, PoolFullError, DriverError,
        HostMemoryError or RefusedError; the region is as before then.
        """
        self._require_own(region)
        size_bytes = whole("size_bytes", size_bytes, least=-WHOLE_MAX)
        if not 0 < size_bytes <= region.capacity_bytes:
            raise UsageError(
                f"a region with a capacity of {region.capacity_bytes} bytes cannot have "
                f"{size_bytes}: give it a larger one with Model.region(capacity_bytes=...)"
            )
        with self.gate.steady() as resident:
            page_bytes = self._session.page_bytes
            pages = -(-size_bytes // page_bytes) - region.span_bytes // page_bytes
            self._declared = 0
            missing_bytes = region.missing_image_bytes(size_bytes)
            unused = partial(lacks_image, region, size_bytes)
            with host_memory(self._session, missing_bytes, unused) as fd:
                if resident and pages > 0:
                    self._extend(region, size_bytes, pages, fd)
                else:
                    gone = region.resize(size_bytes, [], 0, fd)
                    if gone:
                        self._session.release(gone)

    def _require_own(self, region: Region) -> None:
        if not any(region is mine for mine in self._regions):
            raise UsageError(f"that is no region of model {self.name!r}")

    def _extend(self, region: Region, size_bytes: int, pages: int, fd: int) -> None:
        before = region.mapped_pages
        grant = self._session.extend(pages)
        try:
            region.resize(size_bytes, grant.pages, grant.clean, fd)
        except BaseException:
            if region.mapped_pages == before:  # else they go with the rest at the next swap-out
                self._session.release([page.handle for page in grant.pages])
            raise

    def torch_allocator(
        self, tag: str, size_bytes: int, *, capacity_bytes: int = 0
    ) -> TorchAllocator:
        """Memory for torch's allocations, on a GPU, in a new region of ``tag``; see TorchAllocator.

        Raises what ``region`` does, and UsageError on the host device.
        """
        return TorchAllocator(self, tag, size_bytes, capacity_bytes)

    def cupy_allocator(
        self, tag: str, size_bytes: int, *, capacity_bytes: int = 0
    ) -> CupyAllocator:
        """Memory for CuPy's allocations, on a GPU, in a new region of ``tag``; see CupyAllocator.

        Raises what ``region`` does, and UsageError on the host device.
        """
        return CupyAllocator(self, tag, size_bytes, capacity_bytes)

    def regions(self, tag: str) -> list[Region]:
        """The regions of one tag, in the order they were added."""
        return [region for region in self._regions if region.tag == Tag[tag]]

    @property
    def device_kind(self) -> str:
        """``host`` or ``cuda``."""
        return self._session.driver.kind

    @property
    def device_ordinal(self) -> int:
        """Index of the device among those that this process sees."""
        return self._session.driver.ordinal

    @property
    def footprint_bytes(self) -> int:
        """Device memory the model needs to be resident, in whole pages."""
        return self._memory.pages_needed * self._session.page_bytes

    @contextlib.contextmanager
    def resident(self, timeout_s: float | None = None, *, writes: bool = False) -> Iterator[None]:
        """Bring the model in and keep it for the length of a ``with`` block.

        A swap-out does not copy weights that it has saved before: whoever changes weights or a
        KV cache in the block says so with ``writes``, or by ``Region.mark_written``, or the change
        is lost at the next swap-out. Raises DoesNotFitError, LeaseTimeoutError, DriverError.
        """
        if timeout_s is not None:
            timeout_s = seconds("timeout_s", timeout_s)
        with self.gate.hold(timeout_s):
            try:
                yield
            finally:  # also after an error: part may have been written
                if writes:
                    self.mark_written("weights")
                    self.mark_written("kv_cache")

    def mark_written(self, tag: str) -> None:
        """All regions of one tag are to be saved whole at the next swap-out.

        Raises UsageError unless the model is resident.
        """
        for region in self.regions(tag):
            region.mark_written([(0, region.bytes)])

    def swap_out(self) -> bool:
        """Give the memory up now; False if the model was out already."""
        return self.gate.give_up()

    def close(self) -> None:
        """Swap out and leave the pool; idempotent.

        Raises UsageError inside a step of this thread, and what a failed swap-out raises; the
        model is still in the pool then and ``close`` may be called again.
        """
        if self.gate.close():
            self._session.close()

    def drop_memory(self) -> None:
        """Let host images and addresses go, now that the model is closed. For the pool alone."""
        self._regions = []
        self._memory = cast("ModelMemory", _NoMemory())

    # What the gate asks for.

    def bring_in(self, timeout_s: float) -> SwapReport:
        """Get pages and restore every region. For the gate alone."""
        if self._memory.torn:
            self._swap_out()
        self.declare()
        with span(self._session.driver, f"lease wait {self.name}", {}):
            grant = self._session.acquire(timeout_s)
        values: Values = {"pages": len(grant.pages), "clean_pages": grant.clean}
        try:
            with span(self._session.driver, f"swap in {self.name}", values):
                report = self._memory.swap_in(grant.pages, grant.clean)
                values.update(bytes=report.copied_bytes, zeroed_bytes=report.filled_bytes)
        except BaseException:
            if not self._memory.torn:  # else they are still mapped, and go back once they are not
                with contextlib.suppress(DaemonUnavailableError):
                    self._session.give_back(None)
            raise
        self.swap_ins += 1
        self.last_swap_in = report
        with contextlib.suppress(DaemonUnavailableError):
            self._session.arrived(report)  # the memory is here all the same
        return report

    def give_up(self) -> SwapReport:
        """Save, unmap and give the pages back. For the gate alone."""
        if self._before_swap_out is not None and self._memory.resident:
            self._before_swap_out()
        return self._swap_out()

    def _swap_out(self) -> SwapReport:
        values: Values = {}
        with span(self._session.driver, f"swap out {self.name}", values):
            report = self._memory.swap_out()
            values.update(pages=report.pages, bytes=report.copied_bytes)
        self.last_swap_out = report
        # The memory is given up all the same; the next acquire says what is wrong.
        with contextlib.suppress(DaemonUnavailableError):
            self._session.give_back(report)
        return report

    @property
    def torn(self) -> bool:
        """Whether a failure left pages mapped; the next bring-in or give-up unmaps them."""
        return self._memory.torn

    def set_idle(self, idle: bool) -> None:
        """Pass on whether there is unfinished work. For the gate alone."""
        self._session.set_idle(idle)

    def declare(self) -> None:
        """Tell the arbiter the footprint of the regions so far. Raises DoesNotFitError."""
        pages = self._memory.pages_needed
        if pages == 0:
            raise UsageError(f"model {self.name!r} has no region to be resident")
        if pages != self._declared:
            self._session.declare(pages, self._bytes_of("weights"), self._bytes_of("kv_cache"))
            self._declared = pages

    def _bytes_of(self, tag: str) -> int:
        return sum(region.bytes for region in self.regions(tag))


class _NoMemory:
    """Stands for that of a closed model."""

    pages_needed = 0
    resident = False
    torn = False

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError("the model is closed")
