"""Leases inside one process: threads that want memory wait here and see to each other's revokes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from gpupool._core import Driver, PagePool, SwapReport
from gpupool.arbiter import Arbiter
from gpupool.arbiter.leases import Granted
from gpupool.embedded.clean_pages import CleanPages
from gpupool.embedded.damage import Damage
from gpupool.embedded.host_memory import EmbeddedHost
from gpupool.embedded.orders import Order, Orders
from gpupool.embedded.session import EmbeddedSession
from gpupool.embedded.shared_images import EmbeddedImages
from gpupool.embedded.swap_counts import SwapCounts
from gpupool.errors import LeaseTimeoutError, SwapCancelledError
from gpupool.host_budget.place import HostBudget
from gpupool.scrubbing import Scrubbing
from gpupool.session import PageGrant, Revocable, Wanted
from gpupool.sharing.images import Place
from gpupool.statistics import ModelStatistics

_POLL_S = 0.02  # while there are slabs, or pages withheld


class EmbeddedArbiter:
    """The arbiter of one process and the sessions with it. Thread safe.

    A turn has no length here: the model used least recently makes room for the one that asks.
    """

    def __init__(
        self,
        driver: Driver,
        pages: PagePool,
        scrubbing: Scrubbing | None,
        host: HostBudget,
    ) -> None:
        """Start without sessions."""
        self.driver = driver
        self.pages = pages
        self._clean = CleanPages(pages, scrubbing)
        self._arbiter = Arbiter(pages, turn_s=0.0)
        self._changed = threading.Condition()
        self._holders: dict[int, Revocable] = {}
        self._granted: dict[int, Granted] = {}
        self._failed: dict[int, Exception] = {}
        self._orders = Orders(self._arbiter, self._changed, self._holders)
        self._swaps = SwapCounts()
        self._damage = Damage(self._arbiter, self._holders, self._swaps)
        self.host = EmbeddedHost(host, self._arbiter, self._changed, self._holders)
        self.images = EmbeddedImages(self.host.ledger.store, self._changed, pages.page_bytes)
        self._extending = 0  # threads that are to have what comes free before all others
        self.has_slabs = False
        self.awaited: set[int] = set()
        """Models that are coming in, and somebody waits for."""

    def watch_slabs(self) -> None:
        """Pages also come back from slabs, from now on, which tell nobody.

        Nor do they ask for warm pages, so none are kept any more.
        """
        self.has_slabs = True
        self._orders.cool_all()
        self._clean.watch_slabs()

    def made_pages(self) -> None:
        """There are more free pages."""
        self._clean.came_back()

    def add(self, name: str, on_close: Callable[[int], None] = lambda _: None) -> EmbeddedSession:
        """Join as ``name``; ``on_close`` hears of the end. Raises UsageError if it is taken."""
        with self._changed:
            key = self._arbiter.add(name, time.monotonic())
            self._swaps.add(key)
            self.host.add(key)
            return EmbeddedSession(self, key, on_close)

    def statistics(self) -> tuple[ModelStatistics, ...]:
        """The models in the order they joined."""
        with self._changed:
            return self._swaps.statistics(self._arbiter, self.pages, self.host.images)

    def bind(self, key: int, holder: Revocable) -> None:
        """Whom to tell when the lease is revoked."""
        with self._changed:
            self._holders[key] = holder

    def declare(
        self, key: int, pages: int, detail: str, warmable: int, shared: Sequence[Place]
    ) -> None:
        """The footprint of a model. Raises DoesNotFitError."""
        contents = self.images.contents(shared)
        with self._changed:
            self._arbiter.declare(key, pages, detail, warmable, contents)

    def has(self, key: int, first: int, handles: Sequence[int]) -> None:
        """Pages, named by their handles, have what was declared for the places from ``first``."""
        with self._changed:
            self._arbiter.has(key, dict(enumerate(self._numbers(key, handles), first)))

    def damaged(self, key: int, message: str, handles: Sequence[int]) -> None:
        """A model found something else than was saved, as ``Session.damaged``."""
        with self._changed:
            self._damage.found(key, message, self._numbers(key, handles))
            self._changed.notify_all()  # warm pages are asked for

    def _numbers(self, key: int, handles: Sequence[int]) -> list[int]:
        numbers = {self.pages.page(page).handle: page for page in self.pages.owned(key)}
        return [numbers[handle] for handle in handles]

    def acquire(self, key: int, timeout_s: float, wanted: Wanted | None) -> PageGrant:
        """Wait for the lease, as ``Session.acquire``; nothing is granted after an error."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._arbiter.request(key, time.monotonic(), ahead=wanted is not None)
        try:
            while True:
                self._clean.settle()
                with self._changed:
                    granted, orders = self._look(key, timeout_s, deadline_s, wanted)
                if granted is not None:
                    break
                # Outside the lock, since giving up may wait for a step of that model to close.
                self._orders.obey(orders, deadline_s, partial(self._is_answered, key, wanted))
        except BaseException:
            with self._changed:
                self._withdraw(key)
                self._orders.take_back()
            raise
        try:
            return self._clean.grant(key, granted.pages, granted.shared)
        except BaseException:
            with self._changed:
                self._arbiter.undo(granted, time.monotonic())
                self._came_back()
            raise

    def hurry(self, key: int) -> None:
        """What a model acquires ahead it waits for now."""
        with self._changed:
            self._arbiter.hurry(key, time.monotonic())
            self._changed.notify_all()

    def cooled(self, key: int) -> None:
        """A model has released the warm pages that it was asked for, or is closed meanwhile."""
        with self._changed:
            if key in self._holders:
                self._arbiter.cooled(key, time.monotonic())
                self._came_back()

    def _look(
        self, key: int, timeout_s: float, deadline_s: float, wanted: Wanted | None
    ) -> tuple[Granted | None, list[Order]]:
        """What is granted to ``key``, or orders to see to; waits once if there are neither."""
        if wanted is not None and not wanted():  # before more is asked of others for it
            raise SwapCancelledError("what was to come ahead is not wanted any more")
        wake_at_s = self._decide()
        if key in self._failed:
            raise self._failed.pop(key)
        if key in self._granted:
            self._orders.take_back()
            return self._granted.pop(key), []
        # Whoever waits sees to all orders: the decision may have been another thread's.
        orders = self._orders.take()
        if not orders:
            now_s = time.monotonic()
            if now_s >= deadline_s:
                raise LeaseTimeoutError(f"no memory within {timeout_s:g} s: {self._obstacle()}")
            until_s = deadline_s if wake_at_s is None else min(wake_at_s, deadline_s)
            if self.has_slabs or self._clean.withheld > 0 or wanted is not None:
                until_s = min(until_s, now_s + _POLL_S)
            self._changed.wait(max(0.0, until_s - now_s))
        return None, orders

    def _is_answered(self, key: int, wanted: Wanted | None) -> bool:
        """Whether ``key`` has its pages, which others may have given up, or wants none any more."""
        if wanted is not None and not wanted():
            return True
        with self._changed:
            self._decide()
            return key in self._granted or key in self._failed

    def _obstacle(self) -> str:
        """Why there is no memory."""
        if withheld := self._clean.withheld:
            return (
                f"{withheld} pages are withheld, for the device failed while they were zeroed and "
                "does not say that nothing writes to them any more"
            )
        for lease in self._arbiter.leases():
            if lease.stays:
                return f"model {lease.name!r} cannot leave: {lease.stays}"
        if self.has_slabs:
            return "another model is in use, or blocks of slabs are"
        return "another model is in use"

    def _withdraw(self, key: int) -> None:
        """Take a request back, also if another thread's decision has answered it already."""
        self._failed.pop(key, None)
        # What is warm stays so.
        if not self._arbiter.cancel(key, time.monotonic(), mapped=True) and key in self._granted:
            self._arbiter.undo(self._granted.pop(key), time.monotonic())

    def _decide(self) -> float | None:
        if self._extending:
            return None
        for key, holder in self._holders.items():
            self._arbiter.used(key, holder.used_s)
        outcome = self._arbiter.decide(time.monotonic())
        for granted in outcome.granted:
            self._granted[granted.key] = granted
        self._failed.update(outcome.failed)
        self._orders.waiting += [*outcome.cooled, *outcome.revoked]
        if outcome.granted or outcome.failed or outcome.revoked or outcome.cooled:
            self._changed.notify_all()
        return outcome.wake_at_s

    def extend(self, key: int, pages: int) -> PageGrant:
        """More pages for a lease that is held. Raises PoolFullError or DriverError."""
        self._clean.settle()
        with self._changed:
            self._extending += 1
        try:
            granted = self._extend(key, pages)
        finally:
            with self._changed:
                self._extending -= 1
                self._changed.notify_all()
        try:
            return self._clean.grant(key, granted)
        except BaseException:
            with self._changed:
                self._arbiter.take_back(key, granted)
                self._came_back()
            raise

    def _extend(self, key: int, pages: int) -> list[int]:
        """Once what others were asked for is there, which wait for nobody.

        They are asked again where another who grows as well has had what came.
        """
        while True:
            with self._changed:
                # Who decided that they give some may have its own pages and be in a step by now.
                cools = self._orders.take_cools()
                cools += self._arbiter.make_room(key, pages, time.monotonic())
                if not cools:
                    enough = self.pages.free_pages >= pages
                    if enough or not self._arbiter.gives_warm_pages():
                        return self._arbiter.extend(key, pages)
                    self._changed.wait(_POLL_S)
            self._orders.obey(cools, math.inf)

    def release(self, key: int, handles: Sequence[int], *, leaving: bool) -> None:
        """Pages of the lease, named by their handles, are not mapped any more."""
        wanted = set(handles)
        with self._changed:
            held = self.pages.owned(key)
            gone = [page for page in held if self.pages.page(page).handle in wanted]
            self._arbiter.shrink(key, gone, leaving=leaving)
            self._came_back()

    def arrived(self, key: int, report: SwapReport) -> None:
        """A model is resident, which the arbiter takes it for since it granted the pages."""
        with self._changed:
            self._swaps.came(key, report)

    def give_back(self, key: int, report: SwapReport | None, keeps: int) -> None:
        """No page of the lease is mapped any more, but for those that it keeps and are warm."""
        with self._changed:
            self._arbiter.yielded(key, time.monotonic(), keeps)
            if report is not None:  # not before: what was told of twice is refused
                self._swaps.went(key, report)
            self._came_back()

    def set_idle(self, key: int, idle: bool) -> None:
        """Whether the model has unfinished work."""
        with self._changed:
            self._arbiter.set_idle(key, idle, time.monotonic())
            self._changed.notify_all()

    def remove(self, key: int) -> None:
        """Forget a model that holds nothing; idempotent."""
        with self._changed:
            self._holders.pop(key, None)  # it has none if it could not be made
            if self._swaps.remove(key):
                self.host.remove(key)
                self._arbiter.remove(key)
                self._came_back()

    def _came_back(self) -> None:
        self._changed.notify_all()
        self._clean.came_back()
