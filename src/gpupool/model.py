"""One model's memory: regions at stable addresses that come in and go out as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from gpupool._core import Driver, Region, SwapReport, Tag, Verify
from gpupool.checks import WHOLE_MAX, seconds, whole
from gpupool.errors import UsageError
from gpupool.gate import Gate
from gpupool.interop import CupyAllocator, TorchAllocator
from gpupool.keeper import Keeper
from gpupool.residency import Residency, add_region, resize
from gpupool.session import Session


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
        verify: str = "always",
    ) -> None:
        """Join the pool behind ``session``, which this model owns from now on.

        ``verify`` says of which copies of a swap-in the digests are looked at: ``always`` (of all),
        ``sample`` (of one in 16, in turn) or ``off``. Raises UsageError for another word.

        ``before_swap_out`` runs when no step is open and nothing may touch the memory any more:
        it waits for the device and marks what was written.
        """
        lease_timeout_s = seconds("lease_timeout_s", lease_timeout_s)
        self.name = name
        self._lease_timeout_s = lease_timeout_s
        self._session = session
        if verify not in Verify.__members__:
            raise UsageError(f"verify={verify!r}: use 'always', 'sample' or 'off'")
        self._residency = Residency(name, session, before_swap_out, Verify[verify])
        self.gate = Gate(self._residency, lease_timeout_s=lease_timeout_s, min_steps=min_steps)
        session.bind(self.gate)

    def region(
        self, tag: str, size_bytes: int, *, capacity_bytes: int = 0, image: bool = True
    ) -> Region:
        """Reserve addresses (and host memory) for ``size_bytes`` of device memory.

        Addresses are kept for ``capacity_bytes``, up to which ``resize`` can make it grow.

        ``tag`` says what a swap-out saves: ``weights`` once, and then what was written (see
        ``resident``); ``kv_cache`` what was written; ``runtime`` and ``cudagraph`` everything;
        ``workspace`` nothing. What was not saved reads as zeros afterwards. A ``kv_cache`` may do
        without an ``image`` on the host: then nothing of it is saved but by a Keeper. Raises
        UsageError unless the model is out, and DriverError or HostMemoryError if there is no room,
        or of a daemon RefusedError or LeaseTimeoutError.
        """
        kind = _tag(tag)
        size_bytes = whole("size_bytes", size_bytes, least=-WHOLE_MAX)
        if size_bytes < 1:
            raise UsageError("a region must have at least one byte")
        capacity_bytes = whole("capacity_bytes", capacity_bytes)
        if self._residency.resident:
            raise UsageError("a region can be added only while its model is out")
        sizes, cold, limit_s = (size_bytes, capacity_bytes), self._cold(), self._lease_timeout_s
        return add_region(
            kind, sizes, self._residency, self._session, cold, image=image, timeout_s=limit_s
        )

    @contextlib.contextmanager
    def _cold(self) -> Iterator[None]:
        """Without warm pages, if it is out."""
        with self.gate.out() as out, self._residency.cold() if out else contextlib.nullcontext():
            yield

    def remove_region(self, region: Region) -> None:
        """Forget a region of a model that is out, and what is in it.

        Tensors over it keep their addresses, behind which nothing comes any more. Its host image
        goes at once, whoever holds the region; one that somebody looks at (``Region.image``) goes
        with the last who does, and comes off the pool's account when the model next adds, removes
        or resizes a region, leaves, or is closed. Raises UsageError unless the model is out, for a
        region of another model, or while an allocator takes memory from it.
        """
        self._require_own(region)
        with self._cold():
            self._residency.memory_of(region).remove_region(region)
        self._residency.regions = [r for r in self._residency.regions if r is not region]
        self._residency.parking.forget(region)
        self._residency.footprint.changed()
        self._residency.return_images()

    def resize(self, region: Region, size_bytes: int) -> None:
        """Make a region of this model ``size_bytes`` long, at the addresses it has.

        What it gains reads as zeros, what it loses is lost; tensors over what is lost must not be
        touched any more. A resident model takes the pages it needs from those that are free, and
        gives back what it does not need at once; no step of another thread should run meanwhile.
        Raises UsageError beyond the region's capacity, PoolFullError, DriverError,
        HostMemoryError, RefusedError, DamagedMemoryError where an image is cut that does not have
        what was saved, or what ``pinned`` does; the region is as before then.
        """
        self._require_own(region)
        size_bytes = whole("size_bytes", size_bytes, least=-WHOLE_MAX)
        if not 0 < size_bytes <= region.capacity_bytes:
            raise UsageError(
                f"a region with a capacity of {region.capacity_bytes} bytes cannot have "
                f"{size_bytes}: give it a larger one with Model.region(capacity_bytes=...)"
            )
        with self.pinned(), self.gate.steady() as resident:
            resize(region, size_bytes, self._residency, self._session, resident=resident)

    def _require_own(self, region: Region) -> None:
        if not any(region is mine for mine in self._residency.regions):
            raise UsageError(f"that is no region of model {self.name!r}")

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
        """The regions of one tag, in the order they were added. Raises UsageError."""
        kind = _tag(tag)
        return [region for region in self._residency.regions if region.tag == kind]

    def add_keeper(self, keeper: Keeper) -> None:
        """Let ``keeper`` follow every swap of this model from now on, and its close.

        Raises UsageError unless the model is out.
        """
        with self.gate.steady() as resident:
            if resident:
                raise UsageError("a keeper can be added only while its model is out")
            self._residency.keepers.append(keeper)

    @property
    def driver(self) -> Driver:
        """The device that the memory is on."""
        return self._session.driver

    def host_memory(self, size_bytes: int) -> int:
        """A memfd on the model's account; the caller closes it. Raises RefusedError or OSError."""
        return self._session.host_memory(size_bytes)

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more. Raises DaemonUnavailableError."""
        self._session.return_host_memory(size_bytes)

    @property
    def swap_ins(self) -> int:
        """How often the model has come in."""
        return self._residency.swap_ins

    @property
    def last_swap_in(self) -> SwapReport | None:
        """What the latest swap-in took."""
        return self._residency.last_swap_in

    @property
    def last_swap_out(self) -> SwapReport | None:
        """What the latest swap-out took."""
        return self._residency.last_swap_out

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
        return self._residency.pages_needed * self._session.page_bytes

    @property
    def warm_bytes(self) -> int:
        """Device memory that it has while it is out, with what its next swap-in need not copy."""
        return self._residency.warm_pages * self._session.page_bytes

    @contextlib.contextmanager
    def resident(self, timeout_s: float | None = None, *, writes: bool = False) -> Iterator[None]:
        """Bring the model in and keep it for the length of a ``with`` block.

        A swap-out does not copy weights that it has saved before: whoever changes weights or a
        KV cache in the block says so with ``writes``, or by ``Region.mark_written``, or the change
        is lost at the next swap-out. Raises DoesNotFitError, LeaseTimeoutError, DriverError, or
        DamagedMemoryError, with the model out as before, for memory that is not what was saved.
        """
        if timeout_s is not None:
            timeout_s = seconds("timeout_s", timeout_s)
        with self.gate.hold(timeout_s):
            try:
                yield
            finally:  # also after an error: part may have been written
                if writes:
                    for region in (*self.regions("weights"), *self.regions("kv_cache")):
                        if region.image_bytes > 0:  # else its keeper is told, block by block
                            region.mark_written([(0, region.bytes)])

    def mark_written(self, tag: str) -> None:
        """All regions of one tag are to be saved whole at the next swap-out.

        Raises UsageError unless the model is resident.
        """
        for region in self.regions(tag):
            region.mark_written([(0, region.bytes)])

    @contextlib.contextmanager
    def pinned(self, timeout_s: float | None = None) -> Iterator[None]:
        """Keep the images in host memory for the length of a ``with`` block, as to look at them.

        What a daemon had parked in a file is read back first, and host memory for it waited for, at
        most for ``timeout_s`` (default: the lease's). Raises LeaseTimeoutError, RefusedError if
        nobody can make room, DamagedMemoryError, HostMemoryError or DriverError.
        """
        limit_s = self._lease_timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
        with self._residency.parking.pinned(lambda: self._residency.saved, limit_s):
            yield

    @property
    def parked_bytes(self) -> int:
        """Of the images what is in a file, and not in host memory."""
        return self._residency.parking.parked_bytes

    def prefetch(self, share: float = 1.0, timeout_s: float | None = None) -> bool:
        """Bring the model in before it is used; False unless it was out.

        It is copied for ``share`` of the time, and comes after all who wait for memory: only models
        without unfinished work make room for it, used least recently first. A step that opens
        meanwhile has it hurry. Returns once it is there. Raises UsageError for a share that is not
        above 0 and at most 1, LeaseTimeoutError if there is no room within ``timeout_s`` (default:
        the lease's), SwapCancelledError if others need the room before it is there, and what
        ``resident`` raises; the model is out then.
        """
        if not 0 < share <= 1:
            raise UsageError(f"a share of {share!r} is not above 0 and at most 1")
        if timeout_s is not None:
            timeout_s = seconds("timeout_s", timeout_s)
        return self.gate.fetch_ahead(share, timeout_s)

    def swap_out(self) -> bool:
        """Give all memory up now; False if the model was out already."""
        gone = self.gate.give_up()
        with self._cold():
            return gone

    def close(self) -> None:
        """Swap out and leave the pool; idempotent. What keepers have kept of its memory is lost.

        Of its memory nothing is left then but what tensors and ``Region.image`` refer to; an image
        that somebody looks at stays on a daemon's account until the process ends.

        Raises UsageError inside a step of this thread, and what a failed swap-out raises; the
        model is still in the pool then and ``close`` may be called again.
        """
        with self._cold():
            pass  # what fails here must not leave it half closed
        if self.gate.close():
            self._residency.close()

    def declare(self) -> None:
        """Say now whether the regions so far can ever fit the pool. Raises DoesNotFitError."""
        self._residency.declare()


def _tag(name: str) -> Tag:
    kind = Tag.__members__.get(name)
    if kind is None:
        raise UsageError(f"unknown tag {name!r}: use one of {', '.join(Tag.__members__)}")
    return kind
