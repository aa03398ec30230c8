"""When pages of an embedded pool are zeroed beyond what a swap-in needs."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

from gpupool._core import Driver, PagePool, Scrubber
from gpupool.errors import DriverError, UsageError

logger = logging.getLogger("gpupool")

PAGES_AT_ONCE = 8
_LOOK_S = 0.1  # while pages are withheld, or slabs return some without a word


class Scrubbing(Protocol):
    """What a policy does when pages come and go. Thread safe."""

    def granted(self, owner: int, pages: list[int]) -> None:
        """Pages have an owner, who has not mapped them yet. Raises DriverError."""

    def came_back(self) -> None:
        """Pages became free."""

    def settle(self) -> None:
        """Give the pool what a failure withheld from it. Raises DriverError if that fails still."""

    def watch_slabs(self) -> None:
        """Pages also come back from slabs, which tell nobody."""

    def stop(self) -> None:
        """Nothing is begun any more; idempotent."""


def scrubbing(policy: str, driver: Driver, pages: PagePool) -> Scrubbing | None:
    """The policy of that name: ``never`` (None), ``on-grant`` or ``background``."""
    match policy:
        case "never":
            return None
        case "on-grant":
            return OnGrant(driver, pages)
        case "background":
            return Background(driver, pages)
    raise UsageError(f"unknown policy {policy!r}: use 'never', 'on-grant' or 'background'")


class OnGrant:
    """Zeroes every dirty page before its new owner gets it."""

    def __init__(self, driver: Driver, pages: PagePool) -> None:
        """Zero pages of ``pages``."""
        self._pages = pages
        self._scrubber = Scrubber(driver, pages, min(PAGES_AT_ONCE, pages.total_pages))

    def granted(self, owner: int, pages: list[int]) -> None:
        """Zero them. Raises DriverError; those that are still written to are nobody's then."""
        dirty = [page for page in pages if not self._pages.is_clean(page)]
        self._scrubber.scrub_owned(owner, dirty)

    def came_back(self) -> None:
        """They are zeroed when they are granted again."""

    def settle(self) -> None:
        """Take back what a grant that failed left withheld. Raises DriverError."""
        self._scrubber.settle()

    def watch_slabs(self) -> None:
        """Their pages are zeroed when they are granted again, too."""

    def stop(self) -> None:
        """Nothing runs."""


class Background:
    """Zeroes free pages on a thread, whenever some came back."""

    def __init__(self, driver: Driver, pages: PagePool) -> None:
        """Start the thread; it ends with ``stop``, or with this object."""
        self._scrubber = Scrubber(driver, pages, min(PAGES_AT_ONCE, pages.total_pages))
        self._wanted = threading.Event()
        self._slabs = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=_scrub_when_wanted,
            args=(self._scrubber, pages, self._wanted, self._slabs, self._over),
            name="gpupool-scrub",
            daemon=True,
        )
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._wanted, self._over, self._thread)

    def granted(self, owner: int, pages: list[int]) -> None:
        """What is still dirty is for the swap-in to zero."""

    def came_back(self) -> None:
        """Wake the thread."""
        self._wanted.set()

    def settle(self) -> None:
        """Take back what the thread left withheld, for which it tries again too.

        Raises DriverError.
        """
        self._scrubber.settle()

    def watch_slabs(self) -> None:
        """Look now and then from now on."""
        self._slabs.set()
        self._wanted.set()

    def stop(self) -> None:
        """Wait for the thread to end."""
        self._end()


def _end(wanted: threading.Event, over: threading.Event, thread: threading.Thread) -> None:
    over.set()
    wanted.set()
    if thread is not threading.current_thread():
        thread.join()


def _scrub_when_wanted(
    scrubber: Scrubber,
    pages: PagePool,
    wanted: threading.Event,
    slabs: threading.Event,
    over: threading.Event,
) -> None:
    failed = False
    while not over.is_set():
        withheld = pages.statistics().withheld > 0
        wanted.wait(_LOOK_S if withheld or slabs.is_set() else None)
        wanted.clear()
        try:
            while not over.is_set() and scrubber.scrub_free() > 0:
                pass
            failed = False
        except DriverError as error:
            # The pages are dirty as before, and swap-ins zero what they need to; or something may
            # still write to them, and they are withheld until a later call says that nothing does.
            if not failed:
                logger.warning("gpupool: free pages could not be scrubbed: %s", error)
            failed = True
