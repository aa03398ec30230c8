"""How models are had to park, by threads that hold neither the lock nor any gate."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial

from gpupool.arbiter import Arbiter
from gpupool.errors import KvStoreFullError, LeaseTimeoutError, UsageError
from gpupool.host_budget.making_room import MakingRoom, ParkOrder
from gpupool.session import Revocable

log = logging.getLogger(__name__)

_STEP_S = 1.0  # for which the step of a model is waited for, before another model is asked


class ParkOrders:
    """Orders to park, and what became of them."""

    def __init__(
        self,
        arbiter: Arbiter,
        room: MakingRoom,
        changed: threading.Condition,
        holders: Mapping[int, Revocable],
    ) -> None:
        """None yet; ``changed`` guards the others."""
        self._arbiter = arbiter
        self._room = room
        self._changed = changed
        self._holders = holders
        self._later: list[ParkOrder] = []
        self._has_thread = False

    def obey(self, orders: Sequence[ParkOrder], deadline_s: float) -> dict[int, str]:
        """See to some; who cannot leave since this thread is in its step, and that as why.

        After an error those that are left are taken back.
        """
        stay: dict[int, str] = {}
        for index, order in enumerate(orders):
            try:
                stay |= self._obey(order, deadline_s)
            except BaseException:
                self._take_back(orders[index:])
                raise
        return stay

    def obey_later(self, orders: Sequence[ParkOrder]) -> None:
        """Have some seen to by a thread of their own, which ends with them; with the lock held."""
        self._later += orders
        if not self._later or self._has_thread:
            return
        thread = threading.Thread(target=self._obey_later, name="gpupool-park", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            self._take_back(self._later)
            self._later.clear()
            return
        self._has_thread = True

    def _obey_later(self) -> None:
        while True:
            with self._changed:
                if not self._later:
                    self._has_thread = False
                    return
                order = self._later.pop(0)
            try:
                self.obey([order], math.inf)
            except Exception:
                log.exception("gpupool: a model that was to park has failed")

    def _obey(self, order: ParkOrder, deadline_s: float) -> dict[int, str]:
        holder = self._holders.get(order.key)
        if holder is None:
            return {}  # closed meanwhile: what it had comes back
        if not order.leaves:
            holder.park(order.deadline_s)
            return {}
        limit_s = max(0.0, min(deadline_s - time.monotonic(), _STEP_S))
        is_stale = partial(self._is_stale, order.key)
        kept: Exception | None = None
        try:
            if holder.give_up(limit_s, is_stale, 0, order.deadline_s):
                return {}
        except Exception as error:
            kept = error
            self._keep(order.key, error)
        holder.park(order.deadline_s)  # it may be out already; one that is not answers at once
        if kept is None:
            return {}
        if isinstance(kept, UsageError):  # a step of this thread, which another could wait for
            return {order.key: str(kept)}
        why = "" if isinstance(kept, LeaseTimeoutError) else str(kept) or type(kept).__name__
        with self._changed:
            if order.key in self._holders:
                self._room.stays(order.key, time.monotonic(), why)
        return {}

    def _keep(self, key: int, error: Exception) -> None:
        with self._changed:
            if key in self._holders:
                stays = str(error) if isinstance(error, KvStoreFullError) else ""
                self._arbiter.keep(key, time.monotonic(), stays=stays)
                self._changed.notify_all()

    def _take_back(self, orders: Sequence[ParkOrder]) -> None:
        with self._changed:
            for order in orders:
                if order.key not in self._holders:
                    continue
                self._arbiter.keep(order.key, time.monotonic())
                self._room.take_back(order.key)
            self._changed.notify_all()

    def _is_stale(self, key: int) -> bool:
        with self._changed:
            return key not in self._holders or not self._arbiter.is_leaving(key)
