"""Has this process killed, by the kernel, at a chosen driver call or message."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading

from gpupool._core import Driver, FaultPlan, with_faults
from gpupool.daemon import client, wire
from gpupool.pool import open_driver

MESSAGES = ("send-before", "send-after", "receive-before", "receive-after")
CALLS = ("call-before", "call-after")


def arm(moment: str, nth: int) -> None:
    """Die at the nth of what ``moment`` names, counted from now over all threads.

    A message is received *before* when it can be read and has not been; a call or message comes
    *after* only if it succeeded.
    """
    what, _, when = moment.partition("-")
    if what == "call":
        plan = FaultPlan()
        plan.arm_kill(nth, after=when == "after")

        def open_mortal(device: str) -> Driver:
            return with_faults(open_driver(device), plan)

        client.open_driver = open_mortal  # type: ignore[attr-defined]
    else:
        _Countdown(nth, when == "after").put_into_wire(what)


class _Countdown:
    def __init__(self, nth: int, after: bool) -> None:
        self._left = nth
        self._after = after
        self._lock = threading.Lock()

    def put_into_wire(self, what: str) -> None:
        if what == "send":
            self._send = wire.send
            wire.send = self.send
        else:
            self._receive = wire.receive
            wire.receive = self.receive

    def send(self, connection: socket.socket, packet: bytes, fds: list[int]) -> None:
        self._count(not self._after)
        self._send(connection, packet, fds)
        self._count(self._after)

    def receive(self, connection: socket.socket, fds_max: int) -> tuple[bytes, list[int]]:
        if not self._after:
            select.select([connection], [], [])
        self._count(not self._after)
        received = self._receive(connection, fds_max)
        self._count(self._after)
        return received

    def _count(self, counts: bool) -> None:
        with self._lock:
            self._left -= counts
            if counts and self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
