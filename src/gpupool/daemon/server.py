"""The daemon's event loop: one thread, sockets, pidfds and the arbiter's clock."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from gpupool import __version__
from gpupool.arbiter import Arbiter
from gpupool.daemon import wire
from gpupool.daemon.budget import pages_of
from gpupool.daemon.desk import Desk
from gpupool.daemon.in_flight import InFlight
from gpupool.daemon.listening import Listener, require_free
from gpupool.daemon.live_policy import TURNS, LivePolicy
from gpupool.daemon.open_files import open_files_max
from gpupool.daemon.peers import Peer, dismiss
from gpupool.daemon.protocol import Dismissed, ShareImage
from gpupool.errors import DaemonUnavailableError, ProtocolError, UsageError
from gpupool.host_budget.place import ParkingPlace

logger = logging.getLogger("gpupool")

_CONNECTIONS_MAX = 1024
_CONNECTIONS_MIN = 16
_PAGE_BYTES_MAX = 1 << 30
_FDS_OWN = 64  # descriptors of the daemon itself
_TURNS_PUT_OFF_MAX = 300  # about as many packets as fit a socket
_HELD_S = 0.02  # between looks whether descriptors were read: no event tells


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
        parking: ParkingPlace | None = None,
        policy: LivePolicy = TURNS,
    ) -> None:
        """Take the budget, as ``pages_of`` does, then listen on ``socket_path``.

        Its directory must be private, and is made if missing. Raises UsageError for impossible
        sizes, a budget that a GPU has no room for or an unsafe directory, RuntimeError or
        DriverError where there is no such device, OSError if the socket cannot be made.
        """
        if page_bytes > _PAGE_BYTES_MAX:
            raise UsageError(f"a page has at most {_PAGE_BYTES_MAX} bytes, not {page_bytes}")
        self._connections_max = _connections_max(budget_bytes // page_bytes)
        self._in_flight = InFlight(open_files_max(0) // 2)
        require_free(socket_path)  # else the GPU would be asked for what its daemon has
        pages = pages_of(device, budget_bytes, page_bytes)
        arbiter = Arbiter(pages, turn_s)
        self._desk = Desk(
            pages=pages,
            arbiter=arbiter,
            device=device,
            version=__version__,
            host_budget_bytes=host_budget_bytes,
            parking=parking,
            conducting=policy.over(arbiter, revoke_timeout_s),
            min_tokens=min_tokens,
            revoke_timeout_s=revoke_timeout_s,
        )
        self._listener = Listener(socket_path)
        self._peers: dict[Peer, None] = {}  # in order of their coming
        self._turns_put_off = 0
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._selector.register(self._listener.socket, selectors.EVENT_READ, None)

    def stop(self) -> None:
        """End ``run`` soon; may be called from a signal handler or another thread."""
        self._stopping = True
        with contextlib.suppress(OSError):  # told often enough, or ended already
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
            self._listener.close()
            for peer in self._peers:
                peer.close()
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _turn(self) -> None:
        for peer in self._peers:
            if peer.held:
                peer.flush()
        wake_at_s = self._desk.settle(time.monotonic())
        while failed := [peer for peer in self._peers if peer.send_failed]:
            for peer in failed:
                peer.send_failed = False
                self._lose(peer)
            wake_at_s = self._desk.settle(time.monotonic())
        self._watch()
        timeout_s = None if wake_at_s is None else max(0.0, wake_at_s - time.monotonic())
        if any(peer.held for peer in self._peers):
            timeout_s = _HELD_S if timeout_s is None else min(timeout_s, _HELD_S)
        ready = self._selector.select(timeout_s)
        put_off = self._put_off(ready)
        for key, events in ready:
            if key.data in put_off:
                continue
            if key.fileobj is self._listener.socket:
                self._accept()
            elif key.fileobj == self._wake_read:
                os.read(self._wake_read, 64)
            elif key.data in self._peers:  # else forgotten earlier in this round
                self._serve(key.data, key.fd, events)

    def _put_off(self, ready: list[tuple[selectors.SelectorKey, int]]) -> set[Peer]:
        """Newcomers whose first packet is left for later, as others have something to say.

        A process that says something and then connects anew, to open a model that it has closed or
        to ask for the status, is heard in that order, though a turn hears one packet of each.
        """
        peers = {key.data for key, _ in ready if isinstance(key.data, Peer)}
        newcomers = {peer for peer in peers if not peer.heard}
        if not newcomers or newcomers == peers or self._turns_put_off == _TURNS_PUT_OFF_MAX:
            self._turns_put_off = 0
            return set()
        self._turns_put_off += 1
        return newcomers

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.socket.accept()
            peer = Peer(connection, self._in_flight)
        except (OSError, ProtocolError):  # gone already, not welcome, or out of descriptors
            return
        if len(self._peers) >= self._connections_max:
            # Whoever has not joined as a worker has had time to ask what it wanted.
            stranger = next((other for other in self._peers if other.key is None), None)
            if stranger is None:
                dismiss(connection, f"the daemon has {self._connections_max} workers already")
                peer.close()
                return
            self._forget(stranger)
        self._peers[peer] = None
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._selector.register(peer.pidfd, selectors.EVENT_READ, peer)

    def _serve(self, peer: Peer, fd: int, events: int) -> None:
        if fd == peer.pidfd:
            peer.exited = True
            self._selector.unregister(peer.pidfd)
            self._lose(peer)
            return
        if not peer.connected:
            return
        if events & selectors.EVENT_WRITE:
            peer.flush()
        if events & selectors.EVENT_READ:
            self._read(peer)

    def _read(self, peer: Peer) -> None:
        peer.heard = True
        try:
            packet, fds = wire.receive(peer.connection, 1)
            with _closed_at_the_end(fds):
                if peer.lost:
                    return
                message = wire.decode_client(packet)
                if fds and not isinstance(message, ShareImage):
                    raise ProtocolError("a client sent descriptors")
                if not self._desk.handle(peer, message, time.monotonic(), *fds):
                    self._lose(peer)
        except BlockingIOError:
            return
        except ProtocolError as error:
            if not peer.lost:
                peer.say(Dismissed(str(error)))
                self._lose(peer)
        except (DaemonUnavailableError, OSError):
            self._hang_up(peer)
            self._lose(peer)
        except Exception:
            # A defect of the daemon's own. One peer meets it, and the others keep their memory.
            logger.exception("gpupool: the message of process %d could not be handled", peer.pid)
            peer.say(Dismissed("the daemon failed over a message: its log says how"))
            self._lose(peer)

    def _lose(self, peer: Peer) -> None:
        """The connection or the process has ended, or is of no use any more."""
        if not self._desk.holds_pages(peer):
            self._hang_up(peer)
        # Else the connection stays open, unheard, for its end tells that no fork of the process
        # is left.
        if self._desk.lost(peer, time.monotonic()):
            self._forget(peer)

    def _hang_up(self, peer: Peer) -> None:
        if peer.connected:
            self._watch_one(peer, 0)
            peer.disconnect()

    def _forget(self, peer: Peer) -> None:
        self._hang_up(peer)
        if not peer.exited:
            self._selector.unregister(peer.pidfd)
        del self._peers[peer]
        peer.close()

    def _watch(self) -> None:
        """Wait for something to read, or for room to write where something is still to be said.

        Nothing more is read from a peer that does not read what it is told. One that waits for
        descriptors to be read is looked at now and then.
        """
        for peer in self._peers:
            if not peer.connected:
                continue
            if peer.held and not peer.lost:
                self._watch_one(peer, 0)
            else:
                waits = peer.sending and not peer.held
                self._watch_one(peer, selectors.EVENT_WRITE if waits else selectors.EVENT_READ)

    def _watch_one(self, peer: Peer, wanted: int) -> None:
        key = self._selector.get_map().get(peer.connection)
        if key is None:
            if wanted:
                self._selector.register(peer.connection, wanted, peer)
        elif not wanted:
            self._selector.unregister(peer.connection)
        elif key.events != wanted:
            self._selector.modify(peer.connection, wanted, peer)


@contextlib.contextmanager
def _closed_at_the_end(fds: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def _connections_max(pages: int) -> int:
    """How many connections this process may hold beside the pool's pages, raising its limit.

    Raises UsageError if those are too few.
    """
    # A page may be a descriptor, and so may its copy on the way to a worker; a connection comes
    # with a descriptor of its process.
    own = _FDS_OWN + 2 * pages
    wanted = own + 2 * _CONNECTIONS_MAX
    files = open_files_max(wanted)
    found = min((files - own) // 2, _CONNECTIONS_MAX)
    if found < _CONNECTIONS_MIN:
        raise UsageError(
            f"{pages} pages need a limit of at least {own + 2 * _CONNECTIONS_MIN} open files and "
            f"this process has {files}: raise it (ulimit -Hn) or use larger pages"
        )
    return found
