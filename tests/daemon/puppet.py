"""A client process that does what it is told: one JSON command a line in, one answer a line out.

It holds its pages in a process of its own because the daemon kills a process that drops its
connection with pages in hand.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stamps import Stamps

from gpupool.daemon import protocol, wire
from gpupool.daemon.client import DaemonSession
from gpupool.daemon.link import connect
from gpupool.errors import DaemonUnavailableError
from gpupool.model import Model


class _Holder:
    """Does as the test says when its lease is revoked."""

    used_s = 0.0

    def __init__(self, give_up: Callable[..., bool]) -> None:
        self.give_up = give_up

    def cool(self, pages: int) -> None:
        raise AssertionError("it has no warm pages")

    def park(self, deadline_s: float) -> None:
        raise AssertionError("it has nothing to park")

    def fetch_ahead(self, share: float) -> bool:
        return False


class Puppet:
    """The commands. A model is driven by its session, or the socket by hand."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._received_fds: list[int] = []
        self._granted: list[int] = []

    # A model as a library user has it.

    def join(self, name: str) -> int:
        self.__dict__.pop("_stamps", None)
        self._session = DaemonSession(self._socket_path, name)
        self._model = Model(name, self._session, lease_timeout_s=60.0)
        return os.getpid()

    def region(self, tag: str, size_bytes: int) -> int:
        return self._model.region(tag, size_bytes).bytes

    def resize(self, tag: str, size_bytes: int) -> None:
        (region,) = self._model.regions(tag)
        self._model.resize(region, size_bytes)

    def remove(self, tag: str) -> None:
        (region,) = self._model.regions(tag)
        self._model.remove_region(region)

    def declare(self) -> None:
        self._model.declare()

    def enter(self, timeout_s: float | None = None) -> None:
        self._model.gate.open_step(timeout_s)

    def last(self, step_s: float) -> None:
        """Say that steps may take so long from now on."""
        self._lasts = self._model.lasting(step_s)
        self._lasts.__enter__()

    def leave(self) -> None:
        self._model.gate.close_step()

    def fill(self, tag: str, value: int) -> None:
        (region,) = self._model.regions(tag)
        ctypes.memset(region.address, value, region.bytes)
        if tag != "workspace":
            region.mark_written([(0, region.bytes)])

    def values(self, tag: str) -> list[int]:
        """Every byte value in the region, padding included."""
        (region,) = self._model.regions(tag)
        return sorted(set(ctypes.string_at(region.address, region.span_bytes)))

    def look(self, tag: str) -> None:
        """Hold on to the host image."""
        (region,) = self._model.regions(tag)
        self._view = memoryview(region.image())  # type: ignore[arg-type]

    def seen(self) -> int:
        return self._view[0]

    def set_idle(self, idle: bool) -> None:
        self._model.gate.set_idle(idle)

    def swap_out(self) -> bool:
        return self._model.swap_out()

    def warm_bytes(self) -> int:
        return self._model.warm_bytes

    def last_copied_bytes(self) -> int:
        report = self._model.last_swap_in
        assert report is not None
        return report.copied_bytes

    def is_resident(self) -> bool:
        return self._model.gate.is_resident

    def close(self) -> None:
        self._model.close()

    # What is in the memory, byte for byte.

    def stamp(self, generation: int) -> None:
        """Write everywhere."""
        if not hasattr(self, "_stamps"):
            self._stamps = Stamps(self._model, self._model.name)
        self._stamps.write(generation)

    def check(self) -> None:
        """Everything is as it was written, or zeros."""
        self._stamps.check()

    def renew(self, generation: int) -> None:
        self._stamps.check()
        self._stamps.write(generation)

    def descriptors(self) -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def survive(self, inside: bool) -> list[str]:
        """After the daemon's death: keep what is in place, leave, and say what is refused why.

        ``inside`` if a step is open.
        """
        if not hasattr(self, "_model"):
            return []  # never joined
        if inside:
            if hasattr(self, "_stamps"):
                self._stamps.check()
            self._model.gate.close_step()
        self._model.swap_out()
        refused = []
        asks: list[Callable[[], object]] = [lambda: self.region("runtime", 1)]
        if self._model.footprint_bytes:
            asks.append(lambda: self.enter(60.0))
        for ask in asks:
            try:
                ask()
            except DaemonUnavailableError as error:
                refused.append(str(error))
            else:
                raise AssertionError("nothing can be had of a daemon that is dead")
        self._model.close()
        self.forget()
        return refused

    def forget(self) -> None:
        """Let go of a model that is closed."""
        del self._model, self._session
        self.__dict__.pop("_stamps", None)
        gc.collect()

    def acquire(self, timeout_s: float) -> int:
        """A lease without a swap; how many pages."""
        return len(self._session.acquire(timeout_s).pages)

    def give_back(self) -> None:
        self._session.give_back(None)

    # Misbehaviour.

    def hang_up_at_work(self, burden_bytes: int) -> None:
        """Drop the connection with pages in hand, in a process that takes its time to end."""
        self._burden = mmap.mmap(-1, burden_bytes)
        self._burden.madvise(mmap.MADV_NOHUGEPAGE)
        self._burden.write(bytes(burden_bytes))
        self._session._link._connection.shutdown(socket.SHUT_RDWR)
        threading.Event().wait()

    def ignore_revokes(self) -> None:
        self._session.bind(_Holder(lambda *_, **__: threading.Event().wait()))

    def fail_revokes(self, message: str) -> None:
        def fail(*_: object, **__: object) -> bool:
            raise RuntimeError(message)

        self._session.bind(_Holder(fail))

    def stop_before_swap_out(self) -> None:
        """The next swap-out says so and never ends."""

        def stop() -> None:
            say({"stopped": True})
            threading.Event().wait()

        self._model._residency.before_swap_out = stop

    def stop_before_swap_in(self) -> None:
        """The next swap-in, its pages granted, says so and goes on: its copying is cut short."""
        acquire = self._session.acquire

        def acquire_and_say(timeout_s: float, early: Any, ahead: Any) -> Any:
            pages = acquire(timeout_s, early, ahead)
            say({"stopped": True})
            return pages

        self._session.acquire = acquire_and_say  # type: ignore[method-assign]

    def fork(self) -> int:
        """A child that shares all memory and descriptors and does nothing."""
        child = os.fork()
        if child == 0:
            os.close(0)
            os.close(1)
            while True:
                signal.pause()
        return child

    # The socket by hand.

    def connect(self) -> None:
        self._socket = connect(self._socket_path, 60.0)

    def send(self, kind: str, *fields: Any) -> None:
        swaps = kind in ("Arrived", "Yielded")
        values = [protocol.SwapFigures(*f) if swaps and f is not None else f for f in fields]
        fds: list[int] = []
        if kind in ("Release", "WrongPages"):
            values = [self._granted]
        elif kind == "Holds":
            values = [0, self._granted]
        elif kind in ("ImageSettled", "ImageUnshared"):
            values = [self._image, *values]
        elif kind == "ShareImage":
            values[1] = [bytes.fromhex(content) for content in values[1].split()]
            fds = self._received_fds[-1:]
        wire.send(self._socket, wire.encode(getattr(protocol, kind)(*values)), fds)

    def send_bytes(self, packet: str) -> None:
        self._socket.send(bytes.fromhex(packet))

    def receive(self) -> str:
        packet, fds = wire.receive(self._socket, protocol.FDS_MAX)
        self._received_fds += fds
        message = wire.decode_daemon(packet)
        if isinstance(message, protocol.Granted):
            self._granted = message.pages
        elif isinstance(message, protocol.SharedImage):
            self._image = message.number
        return type(message).__name__

    def hang_up(self) -> None:
        self._socket.close()


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def obey(puppet: Puppet) -> None:
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            say({"value": getattr(puppet, command)(*arguments)})
        except Exception as error:
            say({"error": type(error).__name__, "message": str(error)})


if __name__ == "__main__":
    obey(Puppet(Path(sys.argv[1])))
