"""The embedded pool: several models of one process share a budget of device memory.

>>> import gpupool
>>> pool = gpupool.Pool(device="host", budget_bytes=4 << 20, page_bytes=2 << 20)
>>> a, b = pool.model("a"), pool.model("b")
>>> for model in (a, b):
...     _ = model.region("weights", 3 << 20)  # either fits, both do not
>>> with a.resident():
...     a.gate.is_resident, b.gate.is_resident
(True, False)
>>> with b.resident():
...     a.gate.is_resident, b.gate.is_resident
(False, True)
>>> pool.close()
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from gpupool._core import (
    Driver,
    Page,
    PagePool,
    SwapReport,
    open_cuda_driver,
    open_host_driver,
)
from gpupool.arbiter import Arbiter
from gpupool.errors import LeaseTimeoutError, UsageError
from gpupool.model import Model
from gpupool.session import Revocable, Session
from gpupool.statistics import DriverStatistics, ModelStatistics, PoolStatistics, SwapCount
from gpupool.trace import MAX_EVENTS, observe, record

MIB = 1 << 20


def open_driver(device: str) -> Driver:
    """The driver named ``host``, ``cuda`` or ``cuda:<ordinal>``; never one for another.

    It counts its calls, and is traced where GPUPOOL_TRACE is set. Raises UsageError for another
    name or an impossible trace, RuntimeError where there is no CUDA driver, DriverError where
    there is no such device.
    """
    if device == "host":
        return observe(open_host_driver())
    kind, _, ordinal = device.partition(":")
    if kind != "cuda" or not (ordinal == "" or ordinal.isdecimal()):
        raise UsageError(f"unknown device {device!r}: use 'host', 'cuda' or 'cuda:<ordinal>'")
    return observe(open_cuda_driver(int(ordinal or 0)))


class Pool:
    """A budget of device memory and the models that share it, all in this process.

    The model used least recently makes room for the one that is wanted. Thread safe.
    """

    def __init__(
        self,
        *,
        device: str,
        budget_bytes: int,
        page_bytes: int = 64 * MIB,
        driver: Driver | None = None,
    ) -> None:
        """Open ``device`` (``host``, ``cuda``, ``cuda:1``); no memory is taken before it is used.

        ``driver`` replaces the device's own, as tests do. Raises UsageError for a page size that
        is no power of two or no multiple of the device's granularity, or a budget below one page.
        """
        self.driver = open_driver(device) if driver is None else observe(driver)
        self.page_bytes = page_bytes
        self._pages = PagePool(self.driver, budget_bytes, page_bytes)
        self._arbiter = Arbiter(self._pages, turn_s=0.0)
        self._changed = threading.Condition()
        self._holders: dict[int, Revocable] = {}
        self._granted: dict[int, list[int]] = {}
        self._failed: dict[int, Exception] = {}
        self._revoked: list[int] = []
        self._models: list[Model] = []
        self._swaps: dict[int, tuple[SwapCount, SwapCount]] = {}  # in and out

    @property
    def free_bytes(self) -> int:
        """What of the budget no model holds."""
        return self._pages.free_pages * self.page_bytes

    def model(
        self,
        name: str,
        *,
        lease_timeout_s: float = 240.0,
        before_swap_out: Callable[[], None] | None = None,
    ) -> Model:
        """A new model without regions. Raises UsageError if the name is taken."""
        model = Model(
            name,
            self.session(name),
            lease_timeout_s=lease_timeout_s,
            before_swap_out=before_swap_out,
        )
        self._models.append(model)
        return model

    def session(self, name: str) -> Session:
        """Join as ``name`` for a Model made elsewhere. Raises UsageError if it is taken."""
        with self._changed:
            key = self._arbiter.add(name, time.monotonic())
            self._swaps[key] = SwapCount(), SwapCount()
            return _EmbeddedSession(self, key)

    def statistics(self) -> PoolStatistics:
        """What there is of pages, who has them, and what the driver did so far."""
        with self._changed:
            models = tuple(
                ModelStatistics(
                    name=lease.name,
                    held_bytes=len(self._pages.owned(lease.key)) * self.page_bytes,
                    needed_bytes=lease.pages * self.page_bytes,
                    swap_ins=self._swaps[lease.key][0].statistics(),
                    swap_outs=self._swaps[lease.key][1].statistics(),
                )
                for lease in self._arbiter.leases()
            )
            return PoolStatistics(
                page_bytes=self.page_bytes,
                pages_total=self._pages.total_pages,
                pages_created=self._pages.created_pages,
                pages_free=self._pages.free_pages,
                models=models,
                driver=DriverStatistics.of(self.driver),
            )

    def trace(
        self, path: str | Path, *, max_events: int = MAX_EVENTS
    ) -> AbstractContextManager[None]:
        """Record a ``with`` block for https://ui.perfetto.dev and write it to ``path`` at its end.

        Driver calls, what each stream did when, lease waits and swaps. ``%p`` in the path is the
        process. Of more than ``max_events`` (64 bytes each) the rest is counted only. Raises
        UsageError where there is a trace already or no such folder, OSError if it is not written.
        """
        return record(self.driver, path, max_events)

    def close(self) -> None:
        """Close every model; idempotent. The pages go when the last model object does."""
        for model in self._models:
            model.close()
        self._models.clear()

    def _acquire(self, key: int, timeout_s: float) -> list[Page]:
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._arbiter.request(key, time.monotonic())
        try:
            while True:
                with self._changed:
                    pages, revoked = self._look(key, timeout_s, deadline_s)
                if pages is not None:
                    return [self._pages.page(page) for page in pages]
                # Outside the lock, since giving up may wait for a step of that model to close.
                self._obey(revoked, deadline_s)
        except BaseException:
            with self._changed:
                self._withdraw(key)
                self._changed.notify_all()
            raise

    def _look(
        self, key: int, timeout_s: float, deadline_s: float
    ) -> tuple[list[int] | None, list[int]]:
        """The pages granted to ``key``, or revokes to see to; waits once if there are neither."""
        wake_at_s = self._decide()
        if key in self._failed:
            raise self._failed.pop(key)
        if key in self._granted:
            return self._granted.pop(key), []
        # Whoever waits sees to all revokes: the decision may have been another thread's.
        revoked, self._revoked = self._revoked, []
        if not revoked:
            now_s = time.monotonic()
            if now_s >= deadline_s:
                raise LeaseTimeoutError(
                    f"no memory within {timeout_s:g} s: another model is in use"
                )
            until_s = deadline_s if wake_at_s is None else min(wake_at_s, deadline_s)
            self._changed.wait(max(0.0, until_s - now_s))
        return None, revoked

    def _obey(self, revoked: list[int], deadline_s: float) -> None:
        for index, victim in enumerate(revoked):
            holder = self._holders.get(victim)
            if holder is None:
                continue  # closed meanwhile: its pages are back
            try:
                holder.give_up(
                    max(0.0, deadline_s - time.monotonic()), partial(self._is_stale, victim)
                )
            except BaseException:
                with self._changed:
                    for kept in revoked[index:]:
                        if kept in self._holders:
                            self._arbiter.keep(kept, time.monotonic())
                raise

    def _is_stale(self, key: int) -> bool:
        """Whether a model that was to leave has left, and may have asked to come back since."""
        with self._changed:
            return key not in self._holders or not self._arbiter.is_leaving(key)

    def _withdraw(self, key: int) -> None:
        """Take a request back, also if another thread's decision has answered it already."""
        self._failed.pop(key, None)
        if not self._arbiter.cancel(key, time.monotonic()) and key in self._granted:
            del self._granted[key]
            self._arbiter.yielded(key, time.monotonic())

    def _decide(self) -> float | None:
        for key, holder in self._holders.items():
            self._arbiter.used(key, holder.used_s)
        outcome = self._arbiter.decide(time.monotonic())
        for granted in outcome.granted:
            self._granted[granted.key] = granted.pages
        self._failed.update(outcome.failed)
        self._revoked += outcome.revoked
        if outcome.granted or outcome.failed or outcome.revoked:
            self._changed.notify_all()
        return outcome.wake_at_s


class _EmbeddedSession:
    """A model's session with the arbiter of its own process."""

    def __init__(self, pool: Pool, key: int) -> None:
        self._pool = pool
        self._key = key

    @property
    def driver(self) -> Driver:
        return self._pool.driver

    @property
    def page_bytes(self) -> int:
        return self._pool.page_bytes

    def bind(self, holder: Revocable) -> None:
        with self._pool._changed:
            self._pool._holders[self._key] = holder

    def host_memory(self, size_bytes: int) -> int:
        fd = os.memfd_create("gpupool-image", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
        except OSError:
            os.close(fd)
            raise
        return fd

    def declare(self, pages: int, weights_bytes: int, kv_cache_bytes: int) -> None:
        with self._pool._changed:
            detail = f"weights {weights_bytes}, KV cache {kv_cache_bytes}"
            self._pool._arbiter.declare(self._key, pages, detail)

    def acquire(self, timeout_s: float) -> list[Page]:
        return self._pool._acquire(self._key, timeout_s)

    def arrived(self, report: SwapReport) -> None:
        # The arbiter counts the model as resident since it granted the pages.
        with self._pool._changed:
            self._pool._swaps[self._key][0].add(report)

    def give_back(self, report: SwapReport | None) -> None:
        with self._pool._changed:
            if report is not None:
                self._pool._swaps[self._key][1].add(report)
            self._pool._arbiter.yielded(self._key, time.monotonic())
            self._pool._changed.notify_all()

    def set_idle(self, idle: bool) -> None:
        with self._pool._changed:
            self._pool._arbiter.set_idle(self._key, idle, time.monotonic())
            self._pool._changed.notify_all()

    def close(self) -> None:
        with self._pool._changed:
            if self._pool._holders.pop(self._key, None) is not None:
                self._pool._arbiter.remove(self._key)
                del self._pool._swaps[self._key]
                self._pool._changed.notify_all()
