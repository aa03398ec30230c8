"""Pages that workers ask for inside their leases, for which others may give up warm ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gpupool._core import PagePool
from gpupool.arbiter import Arbiter
from gpupool.daemon.hand_out import export, send_pages
from gpupool.daemon.workers import Worker
from gpupool.errors import DriverError, GpupoolError

_EXTEND_S = 20.0  # a client waits for an answer for three times as long


class Extensions:
    """Those that wait: they are in their steps, and who gives warm pages waits for nobody."""

    def __init__(
        self,
        pages: PagePool,
        arbiter: Arbiter,
        workers: Mapping[int, Worker],
        refuse: Callable[[Worker, GpupoolError], None],
    ) -> None:
        """None yet."""
        self._pages = pages
        self._arbiter = arbiter
        self._workers = workers
        self._refuse = refuse

    def ask(self, worker: Worker, pages: int, now_s: float) -> None:
        """A worker asks for so many, and the warm ones for it have been asked for."""
        worker.extends_by = pages
        worker.extends_until_s = now_s + _EXTEND_S
        self.settle(now_s)

    def settle(self, now_s: float) -> float | None:
        """Hand out what is there, before all others.

        Until when nobody else gets what comes free, or None.
        """
        until_s: list[float] = []
        for key, worker in self._workers.items():
            if (count := worker.extends_by) is None:
                continue
            waits = count > self._pages.free_pages and self._arbiter.gives_warm_pages()
            if waits and now_s < worker.extends_until_s:
                until_s.append(worker.extends_until_s)
                continue
            worker.extends_by = None
            try:
                self._extend(worker, key, count)
            except GpupoolError as error:
                self._refuse(worker, error)
        return min(until_s, default=None)

    def _extend(self, worker: Worker, key: int, count: int) -> None:
        pages = self._arbiter.extend(key, count)
        try:
            exported = export(self._pages, worker, pages)
        except DriverError:
            self._arbiter.shrink(key, pages)
            raise
        send_pages(worker, pages, exported, last=True)
