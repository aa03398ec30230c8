"""A second process for a part, and descriptors handed between the two."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from gpu_probe.device import Settings

PR_SET_PDEATHSIG = 1
Conversation = Callable[[Connection, Settings], None]


class Partner:
    """The other process, and the connection to it."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process, self._connection = process, connection

    def tell(self, message: Any) -> None:
        """Send it something."""
        self._connection.send(message)

    def hear(self) -> Any:
        """What it says next. Raises RuntimeError where it failed or ended."""
        try:
            kind, message = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            reason = f"the other process ended with {self.process.exitcode}"
            raise RuntimeError(reason) from None
        if kind == "failed":
            raise RuntimeError(f"in the other process: {message}")
        return message

    def ask(self, message: Any) -> Any:
        """Send it something, and what it answers."""
        self.tell(message)
        return self.hear()

    def descriptor(self) -> int:
        """One that it sends by ``send_descriptor``."""
        self.hear()  # or why there is none
        return recv_handle(self._connection)

    def give(self, fd: int) -> None:
        """Send it a descriptor."""
        assert self.process.pid is not None
        send_handle(self._connection, fd, self.process.pid)


def say(connection: Connection, message: Any) -> None:
    """Of a conversation: send what the first process hears."""
    connection.send(("said", message))


def send_descriptor(connection: Connection, fd: int) -> None:
    """Of a conversation: hand a descriptor to the first process."""
    say(connection, "a descriptor comes")
    send_handle(connection, fd, multiprocessing.parent_process().pid)  # type: ignore[union-attr]


def received(connection: Connection) -> int:
    """Of a conversation: the descriptor that the first process gives."""
    return recv_handle(connection)


def end_with(parent: int) -> None:
    """Have this process killed as the one that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # before that was said
        os.kill(os.getpid(), signal.SIGKILL)


def _converse(conversation: Conversation, connection: Connection, settings: Settings) -> None:
    end_with(multiprocessing.parent_process().pid)  # type: ignore[union-attr,arg-type]
    try:
        conversation(connection, settings)
    except EOFError:
        pass  # the first has heard enough
    except Exception as error:
        connection.send(("failed", str(error)))


@contextmanager
def partner(conversation: Conversation, settings: Settings) -> Iterator[Partner]:
    """One for the length of the block; it is killed at its end, since CUDA ends slowly."""
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=_converse, args=(conversation, other, settings))
    process.start()
    other.close()
    try:
        yield Partner(process, own)
    finally:
        process.kill()
        process.join()
        own.close()
