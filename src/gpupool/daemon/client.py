"""The worker's side of the daemon: a model's session, and the question for the status."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import msgspec

from gpupool._core import Driver, Page, SwapReport
from gpupool.daemon import protocol as p
from gpupool.daemon.link import REPLY_TIMEOUT_S, Link, ask, connect
from gpupool.errors import (
    DaemonUnavailableError,
    GpupoolError,
    KvStoreFullError,
    LeaseTimeoutError,
    ProtocolError,
    UsageError,
)
from gpupool.pool import open_driver
from gpupool.session import NOTHING_EARLY, Early, PageGrant, Revocable


def query_status(socket_path: Path, timeout_s: float = 5.0) -> p.Status:
    """The daemon's account of itself. Raises DaemonUnavailableError or ProtocolError.

    ``timeout_s`` is for each of its packets. The figures are those of the last one, and so is
    each model's state that of its own packet.
    """
    models: list[p.ModelStatus] = []
    after = 0
    with connect(socket_path, timeout_s) as connection:
        while True:
            reply = ask(connection, p.StatusQuery(after))
            if not isinstance(reply, p.StatusReply):
                raise ProtocolError(f"the daemon answered {type(reply).__name__} to a query")
            models.extend(reply.status.models)
            after = reply.next_after
            if after == 0:
                return msgspec.structs.replace(reply.status, models=models)


class _Answer(Enum):
    """What became of an Acquire."""

    GRANTED = "granted"
    BEGUN = "as much of it as one can begin with"
    CANCELLED = "cancelled"
    NONE = "none in time"


class DaemonSession:
    """A model's session with the pool daemon of this machine.

    One thread of its own hears the daemon, another obeys revokes, so that an engine that runs no
    steps gives its memory up too. The process is killed if it drops the connection, or ends the
    session, while it holds pages.
    """

    def __init__(self, socket_path: Path, model: str) -> None:
        """Join the pool as ``model``.

        Raises DaemonUnavailableError, RefusedError (the name is taken), or whatever opening the
        daemon's device here raises.
        """
        connection = connect(socket_path, REPLY_TIMEOUT_S)
        try:
            welcome = ask(connection, p.Hello(p.PROTOCOL_VERSION, model))
            if not isinstance(welcome, p.Welcome):
                raise ProtocolError(f"the daemon answered {type(welcome).__name__} to Hello")
            self._driver = open_driver(welcome.device)
        except BaseException:
            connection.close()
            raise
        self._page_bytes = welcome.page_bytes
        self.budget_bytes = welcome.budget_bytes
        self.min_tokens = welcome.min_tokens
        self._pages: dict[int, Page] = {}  # each imported once, kept for good
        self._fds: dict[int, int] = {}  # of pages not imported yet
        self._asking = threading.Lock()
        self._holder: Revocable | None = None
        self._revokes: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._link = Link(connection, on_revoke=self._revokes.put)
        self._obeying = threading.Thread(target=self._obey, name="gpupool-revoke", daemon=True)
        self._obeying.start()

    @property
    def driver(self) -> Driver:
        """The daemon's device, opened in this process."""
        return self._driver

    @property
    def page_bytes(self) -> int:
        """Size of every page."""
        return self._page_bytes

    def bind(self, holder: Revocable) -> None:
        """Whom to tell, on a thread of the session, when the lease is revoked."""
        self._holder = holder

    def host_memory(self, size_bytes: int) -> int:
        """A memfd of that size for a host image; the caller closes it. Raises RefusedError."""
        if not 0 < size_bytes <= p.COUNT_MAX:
            raise UsageError(f"{size_bytes} is no size for host memory")
        with self._asking:
            reply = self._link.request(p.HostMemory(size_bytes), p.HostMemory)
        if len(reply.fds) != 1:
            self._link.out_of_turn(reply)
        return reply.fds[0]

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more, in whole memfds."""
        self._link.send(p.HostMemoryUnused(size_bytes))

    def declare(self, pages: int, weights_bytes: int, kv_cache_bytes: int) -> None:
        """The footprint that ``acquire`` will be about. Raises DoesNotFitError."""
        with self._asking:
            self._link.request(p.Declare(pages, weights_bytes, kv_cache_bytes), p.Ok)

    def acquire(self, timeout_s: float, early: Early = NOTHING_EARLY) -> PageGrant:
        """Wait for the lease; the declared number of pages, and first those that ``early`` has.

        Raises LeaseTimeoutError, DaemonUnavailableError, what ``early.begin`` does, or DriverError
        when the device cannot provide the pages; nothing is held then, but for what ``early``
        cannot undo.
        """
        ids: list[int] = []
        deadline_s = time.monotonic() + timeout_s
        with self._asking:
            self._link.send(p.Acquire(early.pages))
            answer = self._await(ids, early, deadline_s, early.pages)
            if answer is _Answer.BEGUN:
                try:
                    early.begin([self._page(page) for page in ids[: early.pages]])
                except BaseException:
                    self._end(self._withdraw(ids, early), early)
                    raise
                answer = self._await(ids, early, deadline_s)
            if answer is _Answer.NONE:
                answer = self._withdraw(ids, early)
                if not early.undo():
                    answer = _Answer.CANCELLED
            if answer is _Answer.CANCELLED:
                raise LeaseTimeoutError(
                    f"no memory within {round(timeout_s, 1):g} s: other models hold the pool"
                )
            try:
                return PageGrant([self._page(page) for page in ids])
            except BaseException:
                self._end(answer, early)
                raise

    def extend(self, pages: int) -> PageGrant:
        """More pages for a lease that is held, of those that are free now.

        Raises PoolFullError, DaemonUnavailableError or DriverError; nothing has changed then.
        """
        if not 0 < pages <= p.COUNT_MAX:
            raise UsageError(f"{pages} is no number of pages")
        ids: list[int] = []
        with self._asking:
            self._link.send(p.Extend(min(pages, p.PAGES_MAX)))
            if self._collect(ids, time.monotonic() + REPLY_TIMEOUT_S) is not _Answer.GRANTED:
                self._link.fail("the pool daemon does not answer")
            try:
                return PageGrant([self._page(page) for page in ids])
            except BaseException:
                self._release(ids, leaving=False)
                raise

    def release(self, handles: Sequence[int], *, leaving: bool = False) -> None:
        """Pages of the lease, named by ``Page.handle``, are not mapped any more."""
        ids = {page.handle: number for number, page in self._pages.items()}
        self._release([ids[handle] for handle in handles], leaving)

    def arrived(self, report: SwapReport) -> None:
        """The model is resident."""
        self._link.send(p.Arrived(_figures(report)))

    def give_back(self, report: SwapReport | None) -> None:
        """No page of the lease is mapped any more; ``report`` is None if nothing was swapped."""
        self._link.send(p.Yielded(None if report is None else _figures(report)))

    def set_idle(self, idle: bool) -> None:
        """Whether there is unfinished work."""
        self._link.send(p.Idle(idle))

    def close(self) -> None:
        """Leave the pool; idempotent. The pages must have been given back."""
        self._link.close()
        self._revokes.put(None)
        if self._obeying is not threading.current_thread():
            self._obeying.join()
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _await(self, ids: list[int], early: Early, deadline_s: float, enough: int = 0) -> _Answer:
        """As ``_answer``; an interrupt, as by Ctrl-C, takes the Acquire back."""
        try:
            return self._answer(ids, early, deadline_s, enough)
        except GpupoolError:
            raise
        except BaseException:
            self._end(self._withdraw(ids, early), early)
            raise

    def _answer(self, ids: list[int], early: Early, deadline_s: float, enough: int = 0) -> _Answer:
        """What comes of an Acquire; after a GpupoolError nothing is held."""
        try:
            return self._collect(ids, deadline_s, enough)
        except DaemonUnavailableError:
            early.undo()
            raise
        except GpupoolError:  # refused: what it began with is expected back
            if ids:
                self._end(_Answer.GRANTED, early)
            raise

    def _collect(self, ids: list[int], deadline_s: float, enough: int = 0) -> _Answer:
        """Add the pages of a grant to ``ids`` until it is whole, or enough, or its time is over."""
        while True:
            reply = self._link.reply(deadline_s - time.monotonic())
            if reply is None:
                return _Answer.NONE
            message, fds = reply
            if isinstance(message, p.Ok):
                return _Answer.CANCELLED
            if not isinstance(message, p.Granted) or len(message.new) != len(fds):
                self._link.out_of_turn(reply)
            self._fds.update(zip(message.new, fds, strict=True))
            ids.extend(message.pages)
            if message.last:
                return _Answer.GRANTED
            if 0 < enough <= len(ids):
                return _Answer.BEGUN

    def _withdraw(self, ids: list[int], early: Early) -> _Answer:
        """Take an Acquire back. A grant may be on its way; either it or the Ok comes next."""
        try:
            unmapped = early.undo()
            self._link.send(p.Cancel(mapped=not unmapped))
            answer = self._answer(ids, early, time.monotonic() + REPLY_TIMEOUT_S)
        except GpupoolError:
            raise
        except BaseException:  # interrupted: what comes next would be taken for another answer
            self._link.hang_up("taking an Acquire back was interrupted")
            raise
        if answer is _Answer.NONE:
            self._link.fail("the pool daemon does not answer")
        return answer

    def _end(self, answer: _Answer, early: Early) -> None:
        """Give back what was granted, unless it is mapped still."""
        if answer is _Answer.GRANTED and early.undo():
            self._link.send(p.Yielded(None))

    def _release(self, ids: list[int], leaving: bool) -> None:
        for start in range(0, len(ids), p.RELEASED_MAX):
            self._link.send(p.Release(ids[start : start + p.RELEASED_MAX], leaving))

    def _page(self, page: int) -> Page:
        if page not in self._pages:
            fd = self._fds[page]
            self._pages[page] = Page.import_fd(self._driver, fd, self._page_bytes)
            del self._fds[page]
            os.close(fd)
        return self._pages[page]

    def _obey(self) -> None:
        while (deadline_s := self._revokes.get()) is not None:
            if self._holder is None:
                continue
            try:
                self._holder.give_up(deadline_s)
            except Exception as error:
                # Resident as before. Unless what would be lost with it is why, the daemon keeps its
                # deadline and ends this process at it.
                kept = p.Kept(p.one_line(str(error)), isinstance(error, KvStoreFullError))
                with contextlib.suppress(DaemonUnavailableError):
                    self._link.send(kept)


def _figures(report: SwapReport) -> p.SwapFigures:
    return p.SwapFigures(report.total_s, report.copy_s, report.copied_bytes)
