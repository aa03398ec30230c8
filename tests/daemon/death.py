"""Has this process killed, by the kernel, at a chosen driver call or message; or counts them."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading

from gpupool._core import Driver, FaultPlan, Observer, with_faults
from gpupool.daemon import client, wire
from gpupool.devices import open_driver

MESSAGES = ("send-before", "send-after", "receive-before", "receive-after")
CALLS = ("call-before", "call-after")


def arm(moment: str, nth: int) -> None:
    """Die at the nth of what ``moment`` names, counted from now over all threads.

    A write or read is of the file that images are parked in. A message is received
    *before* when it can be read and has not been; a call or message comes *after* only if it
    succeeded.
    """
    what, _, when = moment.partition("-")
    if what == "call":
        plan = FaultPlan()
        plan.arm_kill(nth, after=when == "after")

        def open_mortal(device: str) -> Driver:
            return with_faults(open_driver(device), plan)

        client.open_driver = open_mortal  # type: ignore[attr-defined]
    elif what in ("send", "receive"):
        _Countdown(nth, when == "after").put_into_wire(what)
    else:
        _Countdown(nth, when == "after").put_into_files(what)


class Census:
    """Which kinds of messages this process sends, and which calls of its driver it makes."""

    def __init__(self) -> None:
        """From now on."""
        self._sent: set[str] = set()
        self._observers: list[Observer] = []
        self._send, self._open_driver = wire.send, client.open_driver  # type: ignore[attr-defined]
        wire.send = self._count_sent
        client.open_driver = self._open_observed  # type: ignore[attr-defined]

    @property
    def found(self) -> dict[str, list[str]]:
        """Names of the messages, of the calls that were made, and of those that were not."""
        calls = [item for observer in self._observers for item in observer.calls().items()]
        made = {name for name, count in calls if count.calls > 0}
        return {
            "sent": sorted(self._sent),
            "made": sorted(made),
            "not made": sorted({name for name, _ in calls} - made),
        }

    def _count_sent(
        self, connection: socket.socket, packet: bytes, fds: list[int], flags: int = 0
    ) -> None:
        self._sent.add(type(wire.decode_client(packet)).__name__)
        self._send(connection, packet, fds, flags)

    def _open_observed(self, device: str) -> Driver:
        driver: Driver = self._open_driver(device)
        assert driver.observer is not None
        self._observers.append(driver.observer)
        return driver


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

    def put_into_files(self, what: str) -> None:
        name = {"write": "pwritev", "read": "preadv"}[what]
        transfer = getattr(os, name)

        def counted(fd: int, data: list[memoryview], offset: int) -> int:
            self._count(not self._after)
            count: int = transfer(fd, data, offset)
            self._count(self._after)
            return count

        setattr(os, name, counted)

    def send(
        self, connection: socket.socket, packet: bytes, fds: list[int], flags: int = 0
    ) -> None:
        self._count(not self._after)
        self._send(connection, packet, fds, flags)
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
