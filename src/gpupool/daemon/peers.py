"""One connected process, as the daemon sees it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from collections import deque
from dataclasses import dataclass, field

from gpupool.daemon import protocol
from gpupool.daemon.protocol import HISTORY, SwapFigures
from gpupool.errors import ProtocolError

_SO_PEERPIDFD = 77  # Linux 6.5; not in Python 3.11's socket module


@dataclass
class History:
    """The last swap-ins of a model, columns of equal length, oldest first."""

    total_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    copied_bytes: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))
    copy_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    wait_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def add(self, swap: SwapFigures, wait_s: float) -> None:
        """Remember one swap-in and how long its lease was waited for."""
        self.total_s.append(swap.total_s)
        self.copied_bytes.append(swap.copied_bytes)
        self.copy_s.append(swap.copy_s)
        self.wait_s.append(wait_s)


class Peer:
    """A connection, the process behind it, and what was handed to it."""

    def __init__(self, connection: socket.socket) -> None:
        """Take the connection over.

        Raises ProtocolError, having closed it, if the process belongs to another user or has
        ended.
        """
        self.connection = connection
        self.connected = True
        try:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self.pid, uid, _ = struct.unpack("3i", credentials)
            if uid != os.getuid():
                raise ProtocolError(f"a process of user {uid} was turned away")
            self.pidfd = _peer_pidfd(connection, self.pid)
        except (OSError, ProtocolError) as error:
            connection.close()
            raise ProtocolError(str(error)) from None
        connection.setblocking(False)
        self.key: int | None = None  # its model's, once it has said Hello
        self.seen_pages: set[int] = set()
        self.weights_bytes = 0
        self.kv_cache_bytes = 0
        self.host_bytes = 0
        self.swap_ins = 0
        self.swap_outs = 0
        self.waited_s = 0.0
        self.history = History()
        self.kill_at_s: float | None = None
        self._outbox: deque[tuple[bytes, list[int]]] = deque()

    @property
    def sending(self) -> bool:
        """Whether packets wait for room in the socket."""
        return bool(self._outbox)

    def send(self, packet: bytes, fds: list[int] | None = None) -> None:
        """Queue a packet and the descriptors, which this object owns from now on."""
        self._outbox.append((packet, fds or []))
        self.flush()

    def flush(self) -> None:
        """Send what fits. A broken connection is found by the next receive."""
        while self._outbox and self.connected:
            packet, fds = self._outbox[0]
            try:
                protocol.send(self.connection, packet, fds)
            except BlockingIOError:
                return
            except OSError:
                self._drop_outbox()
                return
            self._outbox.popleft()
            _close_all(fds)

    def has_exited(self) -> bool:
        """Whether the process is gone, and with it every mapping it had."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        """End the process, this one and no other of the same number."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def disconnect(self) -> None:
        """Close the connection; the process may live on."""
        if self.connected:
            self.connected = False
            self._drop_outbox()
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


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    """A descriptor of the peer process; exact where the kernel gives it with the connection."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        return int(struct.unpack("i", raw)[0])
    except OSError:
        return os.pidfd_open(pid)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
