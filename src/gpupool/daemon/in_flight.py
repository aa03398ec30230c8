"""Descriptors on their way: sent, and perhaps not read yet.

The kernel counts those of a user's sockets together and, beyond the sender's limit of open files,
refuses whoever sends the next (ETOOMANYREFS). So that one who does not read is nobody else's
trouble, those who have some unread share a part of that limit.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios

from gpupool.daemon.protocol import FDS_MAX

EACH_MAX = 2 * FDS_MAX


class InFlight:
    """How many descriptors each connection may have unread."""

    def __init__(self, most: int) -> None:
        """Let all connections together have ``most``, but for one packet of each."""
        self._most = most
        self._unread: dict[socket.socket, int] = {}  # at most so many

    def may_send(self, connection: socket.socket, count: int) -> bool:
        """Whether so many more may go now: always where nothing is unread."""
        self._look(connection)
        unread = self._unread.get(connection, 0)
        if unread == 0:
            return True
        if unread + count > EACH_MAX:
            return False
        if sum(self._unread.values()) + count > self._most:
            for other in list(self._unread):
                self._look(other)
        return sum(self._unread.values()) + count <= self._most

    def sent(self, connection: socket.socket, count: int) -> None:
        """They are on their way."""
        self._unread[connection] = self._unread.get(connection, 0) + count

    def forget(self, connection: socket.socket) -> None:
        """The connection is about to be closed."""
        self._unread.pop(connection, None)

    def _look(self, connection: socket.socket) -> None:
        """All is read once nothing of what was sent is left in the other side's queue."""
        if connection in self._unread and _unread_bytes(connection) == 0:
            del self._unread[connection]


def _unread_bytes(connection: socket.socket) -> int:
    found = array.array("i", [0])
    fcntl.ioctl(connection, termios.TIOCOUTQ, found)
    return found[0]
