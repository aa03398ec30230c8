"""Pages of a pool as their owners get them: zeroed beforehand, if that is the pool's policy."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from gpupool._core import PagePool
from gpupool.errors import DriverError
from gpupool.scrubbing import Scrubbing
from gpupool.session import PageGrant


class CleanPages:
    """Tells a policy of scrubbing, if there is one, what becomes of pages. Thread safe."""

    def __init__(self, pages: PagePool, scrubbing: Scrubbing | None) -> None:
        """Of ``pages``; without scrubbing, whoever maps them zeroes them."""
        self._pages = pages
        self._scrubbing = scrubbing

    @property
    def withheld(self) -> int:
        """Pages that nobody gets, since the device failed while they were zeroed."""
        return 0 if self._scrubbing is None else self._pages.statistics().withheld

    def grant(
        self, key: int, pages: list[int], shared: Mapping[int, int] | None = None
    ) -> PageGrant:
        """What a model gets. Raises DriverError; pages that are written to still are withheld."""
        if self._scrubbing is not None:
            self._scrubbing.granted(key, pages)
        clean = [page for page in pages if self._pages.is_clean(page)]
        dirty = [page for page in pages if not self._pages.is_clean(page)]
        others = [(place, self._pages.page(page)) for place, page in (shared or {}).items()]
        return PageGrant([self._pages.page(page) for page in clean + dirty], len(clean), others)

    def settle(self) -> None:
        """See whether what is withheld can be had again. Waits for the device."""
        if self._scrubbing is None or self.withheld == 0:
            return
        # Where it still cannot, it stays withheld: a lease that needs it waits.
        with contextlib.suppress(DriverError):
            self._scrubbing.settle()
            self._scrubbing.came_back()

    def came_back(self) -> None:
        """Pages became free."""
        if self._scrubbing is not None:
            self._scrubbing.came_back()

    def watch_slabs(self) -> None:
        """Pages also come back from slabs, which tell nobody."""
        if self._scrubbing is not None:
            self._scrubbing.watch_slabs()
