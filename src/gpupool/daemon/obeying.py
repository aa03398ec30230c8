"""What the daemon tells a model to do, each kind on a thread of its own.

So an engine that runs no steps gives its memory up too, and an order that is due soon waits for no
other that takes long.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

from gpupool.daemon import protocol as p
from gpupool.daemon.lasting import Lasting
from gpupool.daemon.link import Link
from gpupool.errors import DaemonUnavailableError, KvStoreFullError, NotBegunError
from gpupool.session import Revocable

log = logging.getLogger(__name__)


class Obeying:
    """Orders and wishes to one model, and the threads that see to them."""

    def __init__(self) -> None:
        """Nobody obeys yet: the first that come wait for ``start``."""
        self.holder: Revocable | None = None
        """Who is told; orders that nobody is there for are dropped."""
        self.file_limit_bytes = 0
        """What a file of parked images may have, by the latest order about one."""
        self._orders: queue.SimpleQueue[p.Revoke | p.Cool | None] = queue.SimpleQueue()
        self._parks: queue.SimpleQueue[p.Park | None] = queue.SimpleQueue()
        self._wishes: queue.SimpleQueue[p.FetchAhead | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._way = p.GiveWay(now=False, lease=0)

    def start(self, link: Link, is_stale: Callable[[p.Revoke], bool], lasting: Lasting) -> None:
        """Obey from now on; ``is_stale`` says that what is revoked has gone by itself."""
        self._is_stale, self._lasting = is_stale, lasting
        runs: dict[str, Callable[[], None]] = {
            "gpupool-revoke": partial(self._obey, link),
            "gpupool-ahead": self._fetch_ahead,
            "gpupool-park": self._park,
        }
        for name, run in runs.items():
            self._threads.append(threading.Thread(target=run, name=name, daemon=True))
            self._threads[-1].start()

    def order(self, order: p.Order) -> None:
        """To be obeyed."""
        if isinstance(order, p.Park) or (isinstance(order, p.Revoke) and order.park_s is not None):
            self.file_limit_bytes = order.file_bytes  # no other comes before this one is answered
        if isinstance(order, p.Park):
            self._parks.put(order)
        else:
            if isinstance(order, p.Revoke) and order.distrusted and not self._is_stale(order):
                log.warning("gpupool: %s", order.distrusted)
                if self.holder is not None:  # at once, whatever is obeyed just now
                    self.holder.distrust()
            self._orders.put(order)

    def wish(self, wish: p.FetchAhead | p.GiveWay) -> None:
        """To be seen to when there is time, or at once where that is no work."""
        if isinstance(wish, p.GiveWay):
            self._way = wish
        else:
            self._wishes.put(wish)

    def gives_way(self, lease: int) -> bool:
        """Whether what is fetched ahead for that lease is to wait for others."""
        way = self._way
        return way.now and way.lease == lease

    def stop(self) -> None:
        """Obey no more; idempotent."""
        self._orders.put(None)
        self._wishes.put(None)
        self._parks.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _obey(self, link: Link) -> None:
        while (order := self._orders.get()) is not None:
            if self.holder is None:
                continue
            left = True
            try:
                if isinstance(order, p.Cool):
                    self.holder.cool(order.pages)
                    continue
                stale = partial(self._is_stale, order)
                left = False
                left = self._leave(self.holder, order, stale)
            except Exception as error:
                # Resident as before, or torn. Unless it has its reasons, because of what would be
                # lost with it or not begun, the daemon keeps its deadline and ends this process.
                stays = isinstance(error, KvStoreFullError | NotBegunError)
                kept = p.Kept(p.one_line(str(error)), stays)
                with contextlib.suppress(DaemonUnavailableError):
                    link.send(kept)
            if isinstance(order, p.Revoke) and order.park_s is not None and not left:
                # It may be out already, and answers.
                self._parks.put(p.Park(order.park_s, order.file_bytes))

    def _leave(self, holder: Revocable, order: p.Revoke, stale: Callable[[], bool]) -> bool:
        with self._lasting.due(order.deadline_s) as due:
            return holder.give_up(
                order.deadline_s, stale, order.keep, order.park_s, lambda: due.longer_s
            )

    def _park(self) -> None:
        while (order := self._parks.get()) is not None:
            if self.holder is not None:
                self.holder.park(order.deadline_s)

    def _fetch_ahead(self) -> None:
        while (wish := self._wishes.get()) is not None:
            if self.holder is None:
                continue
            try:
                self.holder.fetch_ahead(wish.share)
            except Exception as error:  # of a keeper's too: there may be another wish
                log.info("not fetched ahead: %s", error)
