"""A rank's connection to its gang's leader, and the threads that do as it says."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gpupool.daemon import wire
from gpupool.errors import GangBrokenError, GpupoolError, LeaseTimeoutError
from gpupool.gang import protocol as g

_RETRY_S = 0.02


class Rank(Protocol):
    """Who is told what the leader says: a gate."""

    def halt(self, turn: int, hurry_at_s: float | None) -> int:
        """Begin no step of ``turn`` for now, with ``hurry_at_s`` once it had its turn; the last."""

    def part(self, turn: int, step: int) -> bool:
        """Go on up to ``step``; whether ``leave`` is to be called."""

    def leave(self, turn: int) -> None:
        """Leave ``turn``, as agreed."""

    def stay(self, turn: int) -> None:
        """Keep the memory that has come for ``turn``, which has not begun."""

    def broken(self, why: str) -> None:
        """The gang has ended."""


class Member:
    """One rank's part in its gang. Thread safe."""

    def __init__(self, path: Path, rank: int, ranks: int, timeout_s: float) -> None:
        """Join the gang whose leader listens on ``path``, or will within ``timeout_s``.

        Raises GangBrokenError.
        """
        self._connection = _connect(path, timeout_s)
        self._changed = threading.Condition()
        self._come = self._go = self._back = 0  # the last turn of each
        self._broken = ""
        self._orders: queue.SimpleQueue[g.Halt | g.Part | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.say(g.Join(g.GANG_VERSION, rank, ranks))

    def start(self, rank: Rank) -> None:
        """Listen from now on, and tell ``rank``."""
        for name, run in (("listen", self._listen), ("obey", self._obey)):
            thread = threading.Thread(target=run, args=(rank,), name=f"gpupool-gang-{name}")
            thread.daemon = True
            self._threads.append(thread)
            thread.start()

    def say(self, message: g.RankMessage) -> None:
        """Tell the leader; that it has gone is heard where something is awaited."""
        with contextlib.suppress(OSError):
            wire.send(self._connection, g.encode(message), [])

    def fail(self, error: BaseException) -> None:
        """This rank cannot go on, and so nor can the gang."""
        self.say(g.Failed(g.reason(str(error) or type(error).__name__)))

    def granted(self) -> None:
        """This rank has its lease."""
        self.say(g.Granted())

    def is_wanted(self) -> bool:
        """Whether there is any use in this rank's lease, while it waits for that."""
        return not self._broken and self._back < self._come

    def check(self) -> None:
        """Raise GangBrokenError if the gang has ended."""
        if self._broken:
            raise GangBrokenError(self._broken)

    def await_come(self, turn: int, timeout_s: float) -> bool:
        """Until it is this rank's time to bring its memory in; False if the turn does not begin.

        Raises LeaseTimeoutError or GangBrokenError.
        """
        with self._changed:
            self._await(lambda: self._come >= turn, turn, timeout_s, "ask for its memory")
            return self._back < turn

    def await_go(self, turn: int, timeout_s: float) -> bool:
        """Until all ranks are there; False if the turn does not begin, and this rank goes back.

        Raises LeaseTimeoutError or GangBrokenError.
        """
        with self._changed:
            self._await(lambda: self._go >= turn, turn, timeout_s, "begin")
            return self._back < turn

    def hang_up(self, why: str) -> None:
        """End the gang, for ``why`` unless it has ended; idempotent."""
        with self._changed:
            self._broken = self._broken or why
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Leave the gang, which ends with that; idempotent."""
        self.hang_up("it was closed")
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._connection.close()

    def _await(self, done: Callable[[], bool], turn: int, timeout_s: float, what: str) -> None:
        over: Callable[[], bool] = lambda: done() or self._back >= turn  # noqa: E731
        self._changed.wait_for(lambda: self._broken or over(), timeout_s)
        if over():
            return
        self.check()
        raise LeaseTimeoutError(
            f"not all ranks of the engine could {what} within {timeout_s:.3g} s"
        )

    def _listen(self, rank: Rank) -> None:
        why = "the engine's first rank has ended"
        try:
            while True:
                packet, _ = wire.receive(self._connection, 0)
                match message := g.decode_of_leader(packet):
                    case g.Broken():
                        why = message.why
                        return
                    case g.Come():
                        with self._changed:
                            self._come = message.turn
                            self._changed.notify_all()
                    case g.Go():
                        with self._changed:
                            self._go = message.turn
                            self._changed.notify_all()
                    case g.Back():
                        with self._changed:
                            self._back = message.turn
                            self._changed.notify_all()
                    case g.Ask():
                        self.say(g.Waits(message.turn))
                    case g.Stay():
                        rank.stay(message.turn)
                    case g.Halt(hurry_at_s=None):
                        self.say(g.Halted(message.turn, rank.halt(message.turn, None)))
                    case g.Halt():
                        self._orders.put(message)
                    case g.Part():
                        if rank.part(message.turn, message.step):
                            self._orders.put(message)
        except (GpupoolError, OSError):
            pass  # it went away, and says so below
        finally:
            with self._changed:
                self._broken = self._broken or why
                self._changed.notify_all()
            rank.broken(self._broken)
            self._orders.put(None)

    def _obey(self, rank: Rank) -> None:
        while (order := self._orders.get()) is not None:
            if isinstance(order, g.Halt):
                self.say(g.Halted(order.turn, rank.halt(order.turn, order.hurry_at_s)))
            else:
                with contextlib.suppress(Exception):  # of which the leader was told
                    rank.leave(order.turn)


def _connect(path: Path, timeout_s: float) -> socket.socket:
    deadline_s = time.monotonic() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() >= deadline_s:
                raise GangBrokenError(
                    f"the first rank of the engine does not listen on {path} "
                    f"({error.strerror or error}): its log says why"
                ) from None
        time.sleep(_RETRY_S)
