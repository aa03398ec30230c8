"""The worker's side of the daemon's socket."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import UnionType

import msgspec

from gpupool._core import Driver, Page, SwapReport
from gpupool.daemon import protocol as p
from gpupool.errors import (
    DaemonUnavailableError,
    DoesNotFitError,
    GpupoolError,
    LeaseTimeoutError,
    ProtocolError,
    RefusedError,
)
from gpupool.pool import open_driver

_REPLY_TIMEOUT_S = 60.0


def _connect(socket_path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(socket_path))
    except OSError as error:
        connection.close()
        raise DaemonUnavailableError(
            f"no pool daemon answers on {socket_path} ({error.strerror or error}): start one with "
            "'gpupool daemon' or 'gpupool serve'"
        ) from None
    return connection


def query_status(socket_path: Path, timeout_s: float = 5.0) -> p.Status:
    """The daemon's account of itself. Raises DaemonUnavailableError or ProtocolError."""
    models: list[p.ModelStatus] = []
    with _connect(socket_path, timeout_s) as connection:
        while True:
            try:
                p.send(connection, p.encode(p.StatusQuery(first=len(models))), [])
                packet, _ = p.receive(connection)
            except OSError as error:
                raise DaemonUnavailableError(f"the pool daemon did not answer: {error}") from None
            reply = p.decode_daemon(packet)
            if not isinstance(reply, p.StatusReply):
                raise ProtocolError(f"the daemon answered {type(reply).__name__} to a query")
            models.extend(reply.status.models)
            if len(models) >= reply.total or not reply.status.models:
                return msgspec.structs.replace(reply.status, models=models)


class DaemonSession:
    """A model's session with the pool daemon of this machine.

    A listener thread takes revokes, so that an engine that runs no steps gives its memory up too.
    """

    def __init__(self, socket_path: Path, model: str) -> None:
        """Join the pool as ``model``.

        Raises DaemonUnavailableError, RefusedError (the name is taken), or whatever opening the
        daemon's device here raises.
        """
        self._connection = _connect(socket_path, _REPLY_TIMEOUT_S)
        try:
            p.send(self._connection, p.encode(p.Hello(p.PROTOCOL_VERSION, model)), [])
            welcome = p.decode_daemon(p.receive(self._connection)[0])
            if isinstance(welcome, p.Refused):
                raise RefusedError(welcome.message)
            if not isinstance(welcome, p.Welcome):
                raise ProtocolError(f"the daemon answered {type(welcome).__name__} to Hello")
            self._driver = open_driver(welcome.device)
        except BaseException:
            self._connection.close()
            raise
        self._connection.settimeout(None)
        self._page_bytes = welcome.page_bytes
        self.budget_bytes = welcome.budget_bytes
        self.min_tokens = welcome.min_tokens
        self._pages: dict[int, Page] = {}  # each imported once, kept for good
        self._replies: queue.SimpleQueue[tuple[p.DaemonMessage, list[int]]] = queue.SimpleQueue()
        self._give_up: Callable[[float | None], object] | None = None
        self._lost: str | None = None
        self._asking = threading.Lock()
        self._sending = threading.Lock()
        self._listener = threading.Thread(target=self._listen, name="gpupool-lease", daemon=True)
        self._listener.start()

    @property
    def driver(self) -> Driver:
        return self._driver

    @property
    def page_bytes(self) -> int:
        return self._page_bytes

    def on_revoke(self, give_up: Callable[[float | None], object]) -> None:
        self._give_up = give_up

    def host_memory(self, size_bytes: int) -> int:
        with self._asking:
            self._send(p.HostMemory(size_bytes))
            _, fds = self._reply(p.HostMemory, _REPLY_TIMEOUT_S)
        if len(fds) != 1:
            raise ProtocolError("host memory came without its descriptor")
        return fds[0]

    def declare(self, pages: int, weights_bytes: int, kv_cache_bytes: int) -> None:
        with self._asking:
            self._send(p.Declare(pages, weights_bytes, kv_cache_bytes))
            self._reply(p.Ok, _REPLY_TIMEOUT_S)

    def acquire(self, timeout_s: float) -> list[Page]:
        deadline_s = time.monotonic() + timeout_s
        ids: list[int] = []
        cancelled = False
        with self._asking:
            self._send(p.Acquire())
            while True:
                try:
                    message, fds = self._reply(p.Granted | p.Ok, deadline_s - time.monotonic())
                except queue.Empty:
                    if cancelled:
                        raise DaemonUnavailableError("the pool daemon does not answer") from None
                    # A grant may be on its way; either it or the Ok to this comes next.
                    self._send(p.Cancel())
                    cancelled = True
                    deadline_s = time.monotonic() + _REPLY_TIMEOUT_S
                    continue
                if not isinstance(message, p.Granted):
                    raise LeaseTimeoutError(
                        f"no memory within {timeout_s:g} s: other models hold the pool"
                    )
                self._import(message.new, fds)
                ids.extend(message.pages)
                if message.last:
                    return [self._pages[page] for page in ids]

    def arrived(self, report: SwapReport) -> None:
        self._send(p.Arrived(_figures(report)))

    def give_back(self, report: SwapReport | None) -> None:
        self._send(p.Yielded(None if report is None else _figures(report)))

    def set_idle(self, idle: bool) -> None:
        self._send(p.Idle(idle))

    def close(self) -> None:
        if self._lost is None:
            self._lost = "the session is closed"
            try:
                self._connection.send(p.encode(p.Goodbye()))
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the daemon went first
        self._connection.close()
        if self._listener is not threading.current_thread():
            self._listener.join()

    def _import(self, new: list[int], fds: list[int]) -> None:
        try:
            if len(new) != len(fds):
                raise ProtocolError("a grant came without the descriptors of its pages")
            for page, fd in zip(new, fds, strict=True):
                self._pages[page] = Page.import_fd(self._driver, fd, self._page_bytes)
        finally:
            for fd in fds:
                os.close(fd)

    def _send(self, message: msgspec.Struct) -> None:
        if self._lost is not None:
            raise DaemonUnavailableError(self._lost)
        try:
            with self._sending:
                self._connection.send(p.encode(message))
        except OSError as error:
            raise DaemonUnavailableError(f"the pool daemon went away: {error}") from None

    def _reply(
        self, expected: type | UnionType, timeout_s: float
    ) -> tuple[p.DaemonMessage, list[int]]:
        """The next reply. Raises queue.Empty after ``timeout_s``, or what a refusal stands for."""
        message, fds = self._replies.get(timeout=max(0.0, timeout_s))
        if isinstance(message, p.Refused):
            if message.kind == "does_not_fit":
                raise DoesNotFitError(message.message, message.needed_bytes, message.budget_bytes)
            raise RefusedError(message.message)
        if self._lost is not None:
            raise DaemonUnavailableError(self._lost)
        if not isinstance(message, expected):
            raise ProtocolError(f"the daemon answered {type(message).__name__} out of turn")
        return message, fds

    def _listen(self) -> None:
        try:
            while True:
                packet, fds = p.receive(self._connection)
                message = p.decode_daemon(packet)
                if isinstance(message, p.Revoke):
                    self._obey()
                else:
                    self._replies.put((message, fds))
        except (GpupoolError, OSError) as error:
            if self._lost is None:
                self._lost = f"the pool daemon went away: {error}"
            self._replies.put((p.Ok(), []))  # wakes whoever waits for a reply

    def _obey(self) -> None:
        if self._give_up is None:
            return
        try:
            self._give_up(None)
        except GpupoolError as error:
            # Resident as before. The daemon keeps its deadline and ends this process at it.
            self._send(p.Kept(str(error)))


def _figures(report: SwapReport) -> p.SwapFigures:
    return p.SwapFigures(report.total_s, report.copy_s, report.copied_bytes)
