"""The daemon's account of itself: its pool, its models, and whom it turned away."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from gpupool._core import PagePool
from gpupool.arbiter import Arbiter
from gpupool.daemon import protocol as p
from gpupool.daemon.workers import Worker
from gpupool.errors import DoesNotFitError, DriverError, GpupoolError, PoolFullError
from gpupool.host_budget.ledger import HostLedger

_REFUSALS_MAX = 32  # so that all of them and one model's history fit a packet


class Account:
    """What the status tells."""

    def __init__(
        self, version: str, device: str, pages: PagePool, arbiter: Arbiter, host: HostLedger
    ) -> None:
        """Start without refusals."""
        self._version = version
        self._device = device
        self._pages = pages
        self._arbiter = arbiter
        self._host = host
        self._refusals: deque[p.Refusal] = deque(maxlen=_REFUSALS_MAX)

    def note(self, name: str, pid: int, message: str) -> None:
        """Somebody was turned away, or worse."""
        shown = p.one_line(name)[: p.NAME_CHARACTERS_MAX]
        self._refusals.append(p.Refusal(shown, pid, p.one_line(message)))

    def refuse(self, name: str, pid: int, error: GpupoolError) -> p.Refused:
        """The answer to what was asked for in vain, which is noted."""
        self.note(name, pid, str(error))
        message = p.one_line(str(error))
        if isinstance(error, DoesNotFitError):
            return p.Refused("does_not_fit", message, error.needed_bytes, error.budget_bytes)
        if isinstance(error, DriverError):
            return p.Refused("driver", message, call=error.call, status=error.status)
        return p.Refused("pool_full" if isinstance(error, PoolFullError) else "refused", message)

    def status(self, workers: Mapping[int, Worker], after: int) -> p.StatusReply:
        """All of it, but of the models only the first beyond the mark ``after``."""
        keys = [key for key in workers if key > after]  # in order: keys only grow
        fenced = self._arbiter.fenced_pages
        status = p.Status(
            version=self._version,
            device=self._device,
            page_bytes=self._pages.page_bytes,
            budget_bytes=self._arbiter.budget_bytes,
            pages_free=self._pages.free_pages,
            pages_granted=self._pages.total_pages - self._pages.free_pages - fenced,
            pages_fenced=fenced,
            host_bytes=self._host.bytes,
            models=[
                workers[key].status(self._arbiter.lease(key), self._pages.page_bytes)
                for key in keys[:1]
            ],
            refusals=list(self._refusals),
        )
        return p.StatusReply(status, keys[0] if len(keys) > 1 else 0)
