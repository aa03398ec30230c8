"""A model's side of its conversation with an arbiter, wherever that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gpupool._core import Driver, Page, SwapReport


class Revocable(Protocol):
    """What a lease can be taken back from: a gate."""

    def give_up(
        self, timeout_s: float | None = None, is_stale: Callable[[], bool] | None = None
    ) -> bool:
        """Give the memory up at the next step boundary, within ``timeout_s``.

        False if there is nothing to give up, as when ``is_stale`` says that the lease which was
        revoked has ended by itself.
        """

    @property
    def used_s(self) -> float:
        """When the memory was last used, by ``time.monotonic``."""


class Session(Protocol):
    """What a model asks of an arbiter: the embedded one or the daemon's."""

    @property
    def driver(self) -> Driver:
        """The device that the pages are on."""

    @property
    def page_bytes(self) -> int:
        """Size of every page."""

    def bind(self, holder: Revocable) -> None:
        """Whom to tell, on any thread, when the lease is revoked."""

    def host_memory(self, size_bytes: int) -> int:
        """A memfd of that size for a host image; the caller closes it.

        Raises RefusedError, or OSError when the system has no more.
        """

    def declare(self, pages: int, weights_bytes: int, kv_cache_bytes: int) -> None:
        """The footprint that ``acquire`` will be about. Raises DoesNotFitError."""

    def acquire(self, timeout_s: float) -> list[Page]:
        """Wait for the lease; the declared number of pages.

        Raises LeaseTimeoutError, DaemonUnavailableError, or DriverError when the device cannot
        provide the pages; nothing is held then.
        """

    def arrived(self, report: SwapReport) -> None:
        """The model is resident."""

    def give_back(self, report: SwapReport | None) -> None:
        """No page of the lease is mapped any more; ``report`` is None if nothing was swapped."""

    def set_idle(self, idle: bool) -> None:
        """Whether there is unfinished work."""

    def close(self) -> None:
        """Leave the pool. Gives back what is held; idempotent."""
