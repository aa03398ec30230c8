"""The daemon's event loop: one thread, sockets, pidfds and the arbiter's clock."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from pathlib import Path

from gpupool import __version__
from gpupool._core import PagePool
from gpupool.arbiter import Arbiter
from gpupool.daemon import protocol as p
from gpupool.daemon.desk import Desk
from gpupool.daemon.listening import listen
from gpupool.daemon.peers import Peer
from gpupool.errors import DaemonUnavailableError, ProtocolError
from gpupool.pool import open_driver

_CONNECTIONS_MAX = 1024


class Server:
    """Serves one pool on one Unix socket until told to stop."""

    def __init__(
        self,
        socket_path: Path,
        *,
        device: str,
        budget_bytes: int,
        page_bytes: int,
        host_budget_bytes: int,
        turn_s: float,
        min_tokens: int,
        revoke_timeout_s: float,
    ) -> None:
        """Listen on ``socket_path``, in a private directory made if missing.

        Raises UsageError for impossible sizes or an unsafe directory, RuntimeError or DriverError
        where there is no such device, OSError if the socket cannot be made.
        """
        pages = PagePool(open_driver(device), budget_bytes, page_bytes)
        self._socket_path = socket_path
        self._listener = listen(socket_path)
        self._desk = Desk(
            pages=pages,
            arbiter=Arbiter(pages, turn_s),
            device=device,
            version=__version__,
            host_budget_bytes=host_budget_bytes,
            min_tokens=min_tokens,
            revoke_timeout_s=revoke_timeout_s,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._stopping = False
        self._peers: set[Peer] = set()

    def stop(self) -> None:
        """End ``run`` soon; may be called from a signal handler or another thread."""
        self._stopping = True
        os.write(self._wake_write, b"x")

    def stop_on_signals(self) -> None:
        """Stop on SIGTERM and SIGINT. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def run(self) -> None:
        """Serve until stopped, then close every connection and remove the socket."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            for peer in list(self._peers):
                peer.close()
            self._selector.close()
            self._listener.close()
            self._socket_path.unlink(missing_ok=True)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _turn(self) -> None:
        now_s = time.monotonic()
        wake_at_s = self._desk.settle(now_s)
        self._watch()
        timeout_s = None if wake_at_s is None else max(0.0, wake_at_s - time.monotonic())
        for key, events in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj == self._wake_read:
                os.read(self._wake_read, 64)
            elif isinstance(key.data, Peer):
                self._serve(key.data, key.fd, events)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if len(self._peers) >= _CONNECTIONS_MAX:
            connection.close()
            return
        try:
            peer = Peer(connection)
        except ProtocolError:
            return
        self._peers.add(peer)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._selector.register(peer.pidfd, selectors.EVENT_READ, peer)

    def _serve(self, peer: Peer, fd: int, events: int) -> None:
        if peer not in self._peers:  # forgotten earlier in this round
            return
        if fd == peer.pidfd:
            self._lose(peer)
            return
        if events & selectors.EVENT_WRITE:
            peer.flush()
        if events & selectors.EVENT_READ and peer.connected:
            try:
                packet, fds = p.receive(peer.connection)
                for stray in fds:
                    os.close(stray)
                if fds:
                    raise ProtocolError("a client sent descriptors")
                if not self._desk.handle(peer, p.decode_client(packet), time.monotonic()):
                    self._lose(peer)
            except BlockingIOError:
                return
            except (ProtocolError, DaemonUnavailableError, OSError):
                self._lose(peer)

    def _lose(self, peer: Peer) -> None:
        """The connection or the process has ended; forget the peer once both have."""
        if peer.connected:
            self._selector.unregister(peer.connection)
            peer.disconnect()
        if self._desk.lost(peer, time.monotonic()):
            self._selector.unregister(peer.pidfd)
            self._peers.discard(peer)
            peer.close()

    def _watch(self) -> None:
        for peer in self._peers:
            if peer.connected:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.sending else 0)
                if self._selector.get_key(peer.connection).events != wanted:
                    self._selector.modify(peer.connection, wanted, peer)
