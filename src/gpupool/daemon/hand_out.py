"""Pages on their way to a worker: their descriptors, and the messages that name them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gpupool._core import PagePool
from gpupool.daemon import protocol as p
from gpupool.daemon.workers import Worker
from gpupool.errors import DriverError

_GRANT_PAGES_MAX = p.FDS_MAX  # pages in one Granted, so that their descriptors fit beside it


def export(pool: PagePool, worker: Worker, pages: list[int]) -> dict[int, int]:
    """Descriptors of the pages that the worker has not seen. Raises DriverError."""
    exported: dict[int, int] = {}
    try:
        for page in pages:
            if page not in worker.seen_pages:
                exported[page] = pool.page(page).export_fd()
    except DriverError:
        for fd in exported.values():
            os.close(fd)
        raise
    return exported


def send_pages(
    worker: Worker,
    granted: list[int],
    exported: dict[int, int],
    *,
    last: bool,
    shared: Mapping[int, int] | None = None,
) -> None:
    """Grant the worker pages, some of them by their places; it owns the descriptors then."""
    everything: list[tuple[int | None, int]] = [(None, page) for page in granted]
    everything += (shared or {}).items()
    for start in range(0, max(1, len(everything)), _GRANT_PAGES_MAX):  # also a grant of none
        part = everything[start : start + _GRANT_PAGES_MAX]
        new = [page for _, page in part if page in exported]
        ends = last and start + len(part) == len(everything)
        own = [page for place, page in part if place is None]
        others = [(place, page) for place, page in part if place is not None]
        worker.peer.say(p.Granted(own, new, ends, others), [exported[page] for page in new])
    worker.seen_pages.update(exported)
