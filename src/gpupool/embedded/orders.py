"""What the arbiter asks of models, and the threads that see to it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from functools import partial

from gpupool.arbiter import Arbiter
from gpupool.errors import KvStoreFullError, UsageError
from gpupool.schedule.turns import Cool, Revoke
from gpupool.session import Revocable

Order = Revoke | Cool


class Orders:
    """Those given, and how to obey them, outside the lock: that may wait for a step to close."""

    def __init__(
        self, arbiter: Arbiter, changed: threading.Condition, holders: dict[int, Revocable]
    ) -> None:
        """None yet. ``changed`` guards the other two."""
        self._arbiter = arbiter
        self._changed = changed
        self._holders = holders
        self.waiting: list[Order] = []
        """Given, and nobody's yet."""
        self._keeps_nothing = False

    def take(self) -> list[Order]:
        """All that nobody sees to yet; with the lock held.

        Those for warm pages first, which wait for nobody: a revoke may wait for a step, and that
        for the pages.
        """
        return [*self.take_cools(), *self._take_if(Revoke)]

    def take_cools(self) -> list[Order]:
        """Those for warm pages that nobody sees to yet; with the lock held."""
        return self._take_if(Cool)

    def _take_if(self, kind: type[Order]) -> list[Order]:
        taken = [order for order in self.waiting if isinstance(order, kind)]
        self.waiting = [order for order in self.waiting if not isinstance(order, kind)]
        return taken

    def take_back(self) -> None:
        """No model is to leave that nobody sees to yet; with the lock held.

        As a thread ends its wait: who needs them decides anew, and nobody may be left who does.
        """
        self._leave_undone(self._take_if(Revoke))

    def cool_all(self) -> None:
        """Have every model give up what is warm, now and whenever it leaves."""
        self._keeps_nothing = True
        with self._changed:
            cools = self._arbiter.keep_nothing_warm(time.monotonic())
        if cools:
            self.obey(list(cools), math.inf)

    def obey(
        self, orders: list[Order], deadline_s: float, is_done: Callable[[], bool] = lambda: False
    ) -> None:
        """See to some, until ``is_done`` says that nobody needs to wait for a model to leave.

        Those that are left then, or after an error, are taken back: who needs them decides anew.
        """
        for index, order in enumerate(orders):
            holder = self._holders.get(order.key)
            if holder is None:
                continue  # closed meanwhile: its pages are back
            try:
                if isinstance(order, Cool):
                    holder.cool(order.pages)
                    continue
                limit_s = max(0.0, deadline_s - time.monotonic())
                is_over = partial(self._is_over, order.key, is_done)
                if not holder.give_up(limit_s, is_over, order.keep) and is_done():
                    self._leave_undone(orders[index:])
                    break
            except KvStoreFullError as error:
                with self._changed:
                    if order.key in self._holders:
                        self._arbiter.keep(order.key, time.monotonic(), stays=str(error))
            except BaseException:
                self._leave_undone(orders[index:])
                raise
        if self._keeps_nothing and any(isinstance(order, Revoke) for order in orders):
            self.cool_all()  # a revoke of before may have left some

    def _leave_undone(self, orders: list[Order]) -> None:
        with self._changed:
            for order in orders:
                if order.key not in self._holders:
                    continue
                if isinstance(order, Cool):
                    with contextlib.suppress(UsageError):  # it was interrupted as it had answered
                        self._arbiter.cooled(order.key, time.monotonic())
                else:
                    self._arbiter.keep(order.key, time.monotonic())
            self._changed.notify_all()

    def _is_over(self, key: int, is_done: Callable[[], bool]) -> bool:
        """Whether a model that was to leave need not, or has, and may have asked to come back."""
        if is_done():
            return True
        with self._changed:
            return key not in self._holders or not self._arbiter.is_leaving(key)
