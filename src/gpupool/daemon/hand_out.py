"""Pages on their way to a worker: their descriptors, and the messages that name them."""

from __future__ import annotations

import os

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


def send_pages(worker: Worker, granted: list[int], exported: dict[int, int], *, last: bool) -> None:
    """Grant the worker pages; it owns the descriptors then."""
    for start in range(0, max(1, len(granted)), _GRANT_PAGES_MAX):  # also a grant of none
        pages = granted[start : start + _GRANT_PAGES_MAX]
        new = [page for page in pages if page in exported]
        ends = last and start + len(pages) == len(granted)
        worker.peer.say(p.Granted(pages, new, ends), [exported[page] for page in new])
    worker.seen_pages.update(exported)
