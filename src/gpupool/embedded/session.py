"""A model's session with the arbiter of its own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gpupool._core import Driver, SwapReport
from gpupool.errors import LeaseTimeoutError
from gpupool.session import BlocksMoved, Early, HostGrant, PageGrant, Revocable, Wanted
from gpupool.sharing.images import Offer, Place

if TYPE_CHECKING:
    from gpupool.embedded.arbiter import EmbeddedArbiter


class EmbeddedSession:
    """A model's session with the arbiter of its own process."""

    def __init__(self, arbiter: EmbeddedArbiter, key: int, on_close: Callable[[int], None]) -> None:
        """Speak for the model behind ``key``, which ``on_close`` is told once it has left."""
        self._arbiter = arbiter
        self.key = key
        self._on_close = on_close
        self._coming = threading.Lock()  # for what others who fetch ahead look at
        self._is_coming = self._is_hurried = False
        self._asking = threading.Lock()  # for host memory, which one thread of a model waits for

    @property
    def driver(self) -> Driver:
        """The device that the pages are on."""
        return self._arbiter.driver

    @property
    def page_bytes(self) -> int:
        """Size of every page."""
        return self._arbiter.pages.page_bytes

    def bind(self, holder: Revocable) -> None:
        """Whom to tell, on any thread, when the lease is revoked."""
        self._arbiter.bind(self.key, holder)

    def host_memory(self, size_bytes: int) -> int:
        """A memfd of that size; the caller closes it. Raises RefusedError."""
        return self._arbiter.host.hand_out_now(self.key, size_bytes)

    @property
    def parking(self) -> Path | None:
        """The folder for images that are parked; None where none ever are."""
        place = self._arbiter.host.place
        return None if place is None else place.folder

    @property
    def file_limit_bytes(self) -> int:
        """How large the file for them may be, by the latest wish that they be parked."""
        return self._arbiter.host.file_limit_bytes(self.key)

    def parkable(self, size_bytes: int) -> None:
        """So much of the host memory for images may go to a file from now on."""
        self._arbiter.host.parkable(self.key, size_bytes)

    def host_memories(
        self,
        sizes_bytes: Sequence[int],
        timeout_s: float,
        wanted: Wanted | None = None,
        *,
        returns: bool = False,
    ) -> HostGrant:
        """A memfd of each of these sizes, as ``Session.host_memories``."""
        begun_s = time.monotonic()
        if not self._asking.acquire(timeout=min(max(0.0, timeout_s), threading.TIMEOUT_MAX)):
            raise LeaseTimeoutError("another thread awaits host memory for this model")
        try:
            left_s = max(0.0, begun_s + timeout_s - time.monotonic())
            host = self._arbiter.host
            return host.hand_out(self.key, sizes_bytes, left_s, wanted, returns=returns)
        finally:
            self._asking.release()

    def parked(
        self, size_bytes: int, file_bytes: int, why: str = "", *, passes: bool = False
    ) -> None:
        """What came of the wish that the images be parked; 0 and why if nothing, or in use."""
        self._arbiter.host.parked(self.key, size_bytes, file_bytes, why, passes=passes)

    def unparked(self, size_bytes: int, file_bytes: int, read_s: float) -> None:
        """What was read back of parked images; 0 if they are parked still."""
        self._arbiter.host.unparked(self.key, size_bytes, file_bytes, read_s)

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more, in whole memfds."""
        self._arbiter.host.returned(self.key, size_bytes)

    def share_image(self, fd: int, size_bytes: int, contents: Sequence[bytes]) -> Offer:
        """What an image can be made of, as ``Session.share_image``."""
        return self._arbiter.images.share(self.key, fd, size_bytes, contents)

    def settle_image(self, number: int, *, done: bool, gone: bool) -> None:
        """It is made of that from now on, or stays what it is."""
        self._arbiter.host.settle_image(self.key, number, done=done, gone=gone)

    def unshare_image(self, number: int) -> None:
        """Nothing of a shared image is mapped any more."""
        self._arbiter.host.unshare_image(self.key, number)

    def declare(
        self,
        pages: int,
        weights_bytes: int,
        kv_cache_bytes: int,
        warmable: int = 0,
        shared: Sequence[Place] = (),
    ) -> None:
        """The footprint that ``acquire`` will be about, as ``Session.declare``."""
        detail = f"weights {weights_bytes}, KV cache {kv_cache_bytes}"
        self._arbiter.declare(self.key, pages, detail, warmable, shared)

    def acquire(
        self, timeout_s: float, early: Early | None = None, ahead: Wanted | None = None
    ) -> PageGrant:
        """Wait for the lease, as ``Session.acquire``.

        Nothing is used early: the thread that waits is the one that makes others leave.
        """
        self._arbiter.host.comes(self.key)
        grant = self._arbiter.acquire(self.key, timeout_s, ahead)
        with self._coming:
            self._is_coming = True
            if self._is_hurried or ahead is None:
                self._arbiter.awaited.add(self.key)
        return grant

    def hurry(self) -> None:
        """What is being acquired ahead is waited for now."""
        self._arbiter.hurry(self.key)
        self._arbiter.host.hurry(self.key)
        with self._coming:
            self._is_hurried = True
            if self._is_coming:
                self._arbiter.awaited.add(self.key)

    def others_arrive(self) -> bool:
        """Whether somebody waits for another model that is coming in."""
        return bool(self._arbiter.awaited)

    def _has_come(self) -> None:
        with self._coming:
            self._is_coming = self._is_hurried = False
            self._arbiter.awaited.discard(self.key)

    def cooled(self) -> None:
        """The warm pages that were asked for are released, as far as could be."""
        self._arbiter.cooled(self.key)

    def extend(self, pages: int) -> PageGrant:
        """More pages for a lease that is held. Raises PoolFullError or DriverError."""
        return self._arbiter.extend(self.key, pages)

    def release(self, handles: Sequence[int], *, leaving: bool = False) -> None:
        """Pages of the lease are not mapped any more."""
        self._arbiter.release(self.key, handles, leaving=leaving)

    def has(self, first: int, handles: Sequence[int]) -> None:
        """Pages have what was declared for the places from ``first`` on."""
        self._arbiter.has(self.key, first, handles)

    def arrived(self, report: SwapReport) -> None:
        """The model is resident."""
        self._has_come()
        self._arbiter.arrived(self.key, report)

    def give_back(self, report: SwapReport | None, keeps: int = 0) -> None:
        """No page of the lease is mapped any more, but for those that it keeps and are warm."""
        self._has_come()
        self._arbiter.give_back(self.key, report, keeps)

    def damaged(self, message: str, handles: Sequence[int] = ()) -> None:
        """Whoever asked for the model hears of it; others do of the pages."""
        self._arbiter.damaged(self.key, message, handles)

    def blocks_moved(self, moved: BlocksMoved) -> None:
        """Nothing: whoever has a keeper in this process asks it."""

    def lasting(self, step_s: float) -> AbstractContextManager[None]:
        """Nothing: whoever waits here waits as long as it said itself, and nobody is killed."""
        return nullcontext()

    def set_idle(self, idle: bool) -> None:
        """Whether there is unfinished work."""
        self._arbiter.set_idle(self.key, idle)

    def close(self) -> None:
        """Leave the pool, having given everything back; idempotent."""
        self._arbiter.remove(self.key)
        self._on_close(self.key)
