"""A client's connection to the daemon: what it says, and a thread that hears the answers."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from gpupool.checks import seconds
from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.errors import (
    DaemonUnavailableError,
    DoesNotFitError,
    DriverError,
    GpupoolError,
    PoolFullError,
    RefusedError,
)

REPLY_TIMEOUT_S = 60.0
_WAIT_MAX_S = 1e6  # a socket counts milliseconds in 31 bits


class Reply(NamedTuple):
    """A message and its descriptors, which the receiver owns."""

    message: p.DaemonMessage
    fds: list[int]


def connect(socket_path: Path, timeout_s: float) -> socket.socket:
    """A connection whose every call has a time limit. Raises DaemonUnavailableError."""
    timeout_s = seconds("timeout_s", timeout_s, most=_WAIT_MAX_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # A socket with a time limit of Python's does not wait for a daemon that is busy accepting.
    limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        connection.connect(str(socket_path))
        connection.settimeout(timeout_s)
    except OSError as error:
        connection.close()
        raise DaemonUnavailableError(
            f"no pool daemon answers on {socket_path} ({error.strerror or error}): start one with "
            "'gpupool daemon' or 'gpupool serve'"
        ) from None
    return connection


def ask(connection: socket.socket, message: msgspec.Struct) -> p.DaemonMessage:
    """Say something and wait for the answer, which has no descriptors.

    Raises DaemonUnavailableError, RefusedError or ProtocolError.
    """
    try:
        wire.send(connection, wire.encode(message), [])
    except ConnectionError:
        pass  # it may have said why
    except OSError as error:
        raise DaemonUnavailableError(f"the pool daemon did not answer: {error}") from None
    try:
        packet, _ = wire.receive(connection, 0)
    except OSError as error:
        raise DaemonUnavailableError(f"the pool daemon did not answer: {error}") from None
    reply = wire.decode_daemon(packet)
    if isinstance(reply, p.Dismissed):
        raise DaemonUnavailableError(f"the pool daemon ended the connection: {reply.message}")
    if isinstance(reply, p.Refused):
        _raise(reply)
    return reply


class Link:
    """A connection that has been welcomed. Thread safe, but only one thread at a time may ask."""

    def __init__(
        self,
        connection: socket.socket,
        on_order: Callable[[p.Order], None],
        on_wish: Callable[[p.FetchAhead | p.GiveWay], None],
    ) -> None:
        """Take the connection over; what is no reply goes to these, on the listening thread."""
        connection.settimeout(None)
        self._connection = connection
        self._on_order = on_order
        self._on_wish = on_wish
        self._lost: str | None = None
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._listener = threading.Thread(target=self._listen, name="gpupool-listen", daemon=True)
        self._listener.start()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Say something; the descriptors stay the caller's. Raises DaemonUnavailableError."""
        packet = wire.encode(message)
        with self._sending:
            if self._lost is not None:
                raise DaemonUnavailableError(self._lost)
            try:
                wire.send(self._connection, packet, list(fds))
            except OSError as error:
                raise DaemonUnavailableError(f"the pool daemon went away: {error}") from None

    def send_at_once(self, message: msgspec.Struct) -> bool:
        """Say something if that takes no waiting; False if it was not said.

        Raises DaemonUnavailableError.
        """
        packet = wire.encode(message)
        if not self._sending.acquire(blocking=False):
            return False
        try:
            if self._lost is not None:
                raise DaemonUnavailableError(self._lost)
            wire.send(self._connection, packet, [], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            raise DaemonUnavailableError(f"the pool daemon went away: {error}") from None
        finally:
            self._sending.release()
        return True

    def reply(self, timeout_s: float) -> Reply | None:
        """The next reply, or None after ``timeout_s``.

        Raises what a refusal stands for, or DaemonUnavailableError as soon as there is none.
        """
        try:
            reply = self._replies.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if reply is None:
            self._replies.put(None)  # for whoever asks next
            raise DaemonUnavailableError(self._lost or "the pool daemon went away")
        if isinstance(reply.message, p.Refused):
            _raise(reply.message)
        return reply

    def request(self, message: msgspec.Struct, expected: type[msgspec.Struct]) -> Reply:
        """Say something that is answered at once, and the answer."""
        self.send(message)
        reply = self.reply(REPLY_TIMEOUT_S)
        if reply is None:
            self.fail("the pool daemon does not answer")
        if not isinstance(reply.message, expected):
            self.out_of_turn(reply)
        return reply

    def out_of_turn(self, reply: Reply) -> NoReturn:
        """Give up on a daemon that says what it should not. Raises DaemonUnavailableError."""
        for fd in reply.fds:
            os.close(fd)
        self.fail(f"the pool daemon answered {type(reply.message).__name__} out of turn")

    def fail(self, reason: str) -> NoReturn:
        """Hang up, for question and answer can no longer be told apart."""
        self.hang_up(reason)
        raise DaemonUnavailableError(reason)

    def close(self) -> None:
        """Take leave and hang up; idempotent."""
        with contextlib.suppress(DaemonUnavailableError):
            self.send(p.Goodbye())
        self.hang_up("the session is closed")
        if self._listener is not threading.current_thread():
            self._listener.join()
            self._connection.close()
        with contextlib.suppress(queue.Empty):
            while True:
                unread = self._replies.get_nowait()
                for fd in unread.fds if unread else []:
                    os.close(fd)
        self._replies.put(None)  # for a thread that asks still

    def hang_up(self, reason: str) -> None:
        """End the connection, for ``reason`` unless it has ended; nothing can be asked any more."""
        self._lost = self._lost or reason
        with contextlib.suppress(OSError):  # closed already
            self._connection.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        reason = "the pool daemon went away"
        try:
            while True:
                packet, fds = wire.receive(self._connection, p.FDS_MAX)
                try:
                    message = wire.decode_daemon(packet)
                except BaseException:
                    for fd in fds:
                        os.close(fd)
                    raise
                if isinstance(message, p.Order):
                    self._on_order(message)
                elif isinstance(message, p.FetchAhead | p.GiveWay):
                    self._on_wish(message)
                elif isinstance(message, p.Dismissed):
                    reason = f"the pool daemon ended the connection: {message.message}"
                    return
                else:
                    self._replies.put(Reply(message, fds))
        except (GpupoolError, OSError) as error:
            reason = f"the pool daemon went away: {error}"
        finally:
            self.hang_up(reason)
            self._replies.put(None)


def _raise(refused: p.Refused) -> NoReturn:
    if refused.kind == "does_not_fit":
        raise DoesNotFitError(refused.message, refused.needed_bytes, refused.budget_bytes)
    if refused.kind == "driver":
        raise DriverError(refused.message, refused.call, refused.status)
    if refused.kind == "pool_full":
        raise PoolFullError(refused.message)
    raise RefusedError(refused.message)
