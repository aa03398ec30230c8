"""The pages that a client was ever granted, each imported once and kept for good."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gpupool._core import Driver, Page
from gpupool.daemon.open_files import check_room_for_pages


class PageTable:
    """Pages by the daemon's numbers."""

    def __init__(self, driver: Driver, page_bytes: int, budget_bytes: int) -> None:
        """Know none yet, of a pool of so many bytes.

        Raises UsageError if this process may not have as many files open as that has pages.
        """
        check_room_for_pages(budget_bytes // page_bytes)
        self._driver = driver
        self._page_bytes = page_bytes
        self._pages: dict[int, Page] = {}
        self._fds: dict[int, int] = {}  # of pages not imported yet

    def learn(self, numbers: Sequence[int], fds: Sequence[int]) -> None:
        """Descriptors of new pages, which are this table's from now on."""
        self._fds.update(zip(numbers, fds, strict=True))

    def page(self, number: int) -> Page:
        """One of them. Raises DriverError."""
        if number not in self._pages:
            fd = self._fds[number]
            self._pages[number] = Page.import_fd(self._driver, fd, self._page_bytes)
            del self._fds[number]
            os.close(fd)
        return self._pages[number]

    def pages(self, numbers: Sequence[int]) -> list[Page]:
        """Some of them. Raises DriverError."""
        return [self.page(number) for number in numbers]

    def numbers(self, handles: Sequence[int]) -> list[int]:
        """What the daemon calls pages that are named by ``Page.handle``."""
        known = {page.handle: number for number, page in self._pages.items()}
        return [known[handle] for handle in handles]

    def close(self) -> None:
        """Close what was not imported."""
        while self._fds:
            os.close(self._fds.popitem()[1])
