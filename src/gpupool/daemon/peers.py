"""One connected process, as the daemon sees it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
from collections import deque

import msgspec

from gpupool.daemon import wire
from gpupool.daemon.in_flight import InFlight
from gpupool.daemon.protocol import Dismissed
from gpupool.errors import ProtocolError

_SO_PEERPIDFD = 77  # Linux 6.5; not in Python 3.11's socket module


class Peer:
    """A connection and the process behind it."""

    def __init__(self, connection: socket.socket, in_flight: InFlight) -> None:
        """Take the connection over, whose descriptors are counted by ``in_flight``.

        Raises ProtocolError, having closed it, if the process belongs to another user or has
        ended.
        """
        self.connection = connection
        self.connected = True
        self._in_flight = in_flight
        self.held = False
        """What is next to be sent waits for descriptors to be read, by this peer or by others."""
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        try:
            connection.setblocking(False)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self.pid, uid, _ = struct.unpack("iII", credentials)
            if uid != os.geteuid():
                raise ProtocolError(f"this daemon is not for user {uid}")
            self.pidfd = _peer_pidfd(connection, self.pid)
        except ProtocolError as error:
            dismiss(connection, str(error))
            raise
        except OSError as error:
            connection.close()
            raise ProtocolError(str(error)) from None
        self.key: int | None = None  # its model's, once it has said Hello
        self.heard = False  # it has said something
        self.lost = False  # nothing it says counts any more
        self.exited = False  # the process is gone, and with it every mapping it had
        self.send_failed = False

    @property
    def sending(self) -> bool:
        """Whether packets wait for room in the socket."""
        return bool(self._outbox)

    def say(self, message: msgspec.Struct, fds: list[int] | None = None) -> None:
        """Queue a message and the descriptors, which this object owns from now on."""
        if self.connected:
            self._outbox.append((wire.encode(message), fds or []))
            self.flush()
        else:
            _close_all(fds or [])

    def flush(self) -> None:
        """Send what fits, of the socket's room and of descriptors in flight."""
        self.held = False
        while self._outbox and self.connected:
            packet, fds = self._outbox[0]
            if fds and not self._in_flight.may_send(self.connection, len(fds)):
                self.held = True
                return
            try:
                wire.send(self.connection, packet, fds)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:  # of this user's; it is not this peer's doing
                    self.held = True
                    return
                # One that has closed may have said something before: reading finds the end. Any
                # other error (no memory) leaves it half told.
                closed = isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN
                self.send_failed = not closed
                self._drop_outbox()
                return
            self._outbox.popleft()
            if fds:
                self._in_flight.sent(self.connection, len(fds))
            _close_all(fds)

    def kill(self) -> None:
        """End the process, this one and no other of the same number."""
        with contextlib.suppress(OSError):  # gone already, or no longer this user's
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def disconnect(self) -> None:
        """Close the connection; the process may live on."""
        if self.connected:
            self.connected = False
            self._drop_outbox()
            self._in_flight.forget(self.connection)
            self.connection.close()

    def close(self) -> None:
        """Let go of connection and process."""
        self.disconnect()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _drop_outbox(self) -> None:
        for _, fds in self._outbox:
            _close_all(fds)
        self._outbox.clear()
        self.held = False


def dismiss(connection: socket.socket, message: str) -> None:
    """Close a connection that was not let in, saying why if that can be said at once."""
    with contextlib.suppress(OSError):
        wire.send(connection, wire.encode(Dismissed(message)), [])
    connection.close()


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    """A descriptor of the peer process; exact where the kernel gives it with the connection."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        return int(struct.unpack("i", raw)[0])
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise
    pidfd = os.pidfd_open(pid)
    # The number may have gone to another process before that, but not while the first one lived,
    # which it did if it has not hung up yet.
    with contextlib.suppress(BlockingIOError):
        if not connection.recv(1, socket.MSG_PEEK):
            os.close(pidfd)
            raise ProtocolError("the process has ended")
    return pidfd


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
