"""Steps that take longer than others, of which the daemon is told before they begin."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from gpupool.daemon import protocol as p
from gpupool.daemon.due import Due
from gpupool.daemon.link import Link
from gpupool.errors import DaemonUnavailableError


class Lasting:
    """How long the steps of one model may take. Thread safe."""

    def __init__(self, link: Link) -> None:
        """As long as those of all."""
        self._link = link
        self._changing = threading.Lock()
        self._steps_s: list[float] = []
        self._due: Due | None = None

    @property
    def step_s(self) -> float:
        """Of what blocks have said the most; 0 outside of them."""
        return max(self._steps_s.copy(), default=0.0)

    @contextlib.contextmanager
    def steps(self, step_s: float) -> Iterator[None]:
        """Those that begin in a ``with`` block may take so long."""
        self._change(self._steps_s.append, step_s)
        try:
            yield
        finally:
            self._change(self._steps_s.remove, step_s)

    @contextlib.contextmanager
    def due(self, others_s: float) -> Iterator[Due]:
        """When an order that is obeyed in a ``with`` block, one at a time, must have been."""
        with self._changing:
            due = self._due = Due(time.monotonic(), others_s, self.step_s)
        try:
            yield due
        finally:
            with self._changing:
                self._due = None

    def _change(self, change: Callable[[float], None], step_s: float) -> None:
        with self._changing:
            before = self.step_s
            change(step_s)
            if self.step_s == before:
                return
            if self._due is not None:
                self._due.lasts(self.step_s, time.monotonic())
            # Whoever has its memory goes on without the daemon, and who has not is told as it asks.
            with contextlib.suppress(DaemonUnavailableError):
                self._link.send(p.Lasting(self.step_s))
