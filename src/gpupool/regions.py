"""The regions of a model: how they are added, removed and resized."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gpupool._core import Region, Tag
from gpupool.checks import WHOLE_MAX, seconds, whole
from gpupool.errors import UsageError
from gpupool.gate import Gate
from gpupool.residency import Residency, add_region, resize
from gpupool.session import Session


class Regions:
    """Those of one model, behind its gate."""

    name: str
    gate: Gate
    _session: Session
    _residency: Residency
    _shares: bool
    _lease_timeout_s: float

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
        or where there is a budget of host memory what ``pinned`` does: what is parked of the model
        comes back first.
        """
        kind = _tag(tag)
        size_bytes = whole("size_bytes", size_bytes, least=-WHOLE_MAX)
        if size_bytes < 1:
            raise UsageError("a region must have at least one byte")
        capacity_bytes = whole("capacity_bytes", capacity_bytes)
        if self._residency.resident:
            raise UsageError("a region can be added only while its model is out")
        return add_region(
            kind,
            (size_bytes, capacity_bytes),
            self._residency,
            self._session,
            self._cold(),
            image=image,
            timeout_s=self._lease_timeout_s,
            shares=self._shares,
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
            self._residency.sharing.forget(region)
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

    @contextlib.contextmanager
    def pinned(self, timeout_s: float | None = None) -> Iterator[None]:
        """Keep the images in host memory for the length of a ``with`` block, as to look at them.

        What was parked in a file is read back first, and host memory for it waited for, at
        most for ``timeout_s`` (default: the lease's). Raises LeaseTimeoutError, RefusedError if
        nobody can make room, DamagedMemoryError, HostMemoryError, DriverError, or UsageError if the
        model is closed meanwhile.
        """
        limit_s = self._lease_timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
        with self._residency.parking.pinned(lambda: self._residency.saved, limit_s):
            yield

    @property
    def parked_bytes(self) -> int:
        """Of the images what is in a file, and not in host memory.

        >>> import gpupool, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> pool = gpupool.Pool(
        ...     device="host",
        ...     budget_bytes=4 << 20,
        ...     page_bytes=2 << 20,
        ...     host_budget_bytes=3 << 20,
        ...     parking_folder=folder.name,
        ... )
        >>> models = []
        >>> for name in "ab":
        ...     models.append(pool.model(name))
        ...     weights = models[-1].region("weights", 2 << 20)
        ...     memoryview(weights.image())[:] = name.encode() * (2 << 20)
        ...     weights.adopt_image()
        >>> [model.parked_bytes for model in models], pool.statistics().host_bytes
        ([2097152, 0], 2097152)
        >>> with models[0].resident():
        ...     [model.parked_bytes for model in models]
        [0, 2097152]
        >>> pool.close()
        >>> folder.cleanup()
        """
        return self._residency.parking.parked_bytes

    def regions(self, tag: str) -> list[Region]:
        """The regions of one tag, in the order they were added. Raises UsageError."""
        kind = _tag(tag)
        return [region for region in self._residency.regions if region.tag == kind]


def _tag(name: str) -> Tag:
    kind = Tag.__members__.get(name)
    if kind is None:
        raise UsageError(f"unknown tag {name!r}: use one of {', '.join(Tag.__members__)}")
    return kind
