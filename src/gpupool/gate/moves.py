"""How a model's memory comes and goes behind its gate, by one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpupool._core import SwapReport
from gpupool.gate.turn import Turn
from gpupool.residency import Ahead, Resident, State


class Moves:
    """The state that the memory is in. What is private here wants the lock held, once."""

    def __init__(self, resident: Resident, turn: Turn) -> None:
        """Out."""
        self._resident, self._turn = resident, turn
        self._changed = threading.Condition()
        self._state = State.OUT
        self._arrivals = 0  # that find nothing left of what was there before
        self._ahead: Ahead | None = None  # of what arrives now
        self._distrusted = False

    @property
    def is_resident(self) -> bool:
        """Whether the memory is in place; unless it is, it may be out, torn, or on its way.

        True may be outdated at once. Who needs it out asks ``Gate.steady``.
        """
        return self._state is State.RESIDENT

    def distrust(self) -> None:
        """Let no step begin, but within one that is open, before the memory was given up whole."""
        self._distrusted = True  # without the lock: whoever found out waits for nobody

    def _bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> None:
        """The lock is let go meanwhile."""
        was_torn, after = self._state is State.TORN, None
        self._state, self._ahead, self._distrusted = State.ARRIVING, ahead, False
        self._arrivals += not was_torn
        self._changed.release()
        try:
            self._arrive(max(0.0, timeout_s), ahead)
            after = State.RESIDENT
        finally:
            self._changed.acquire()
            self._state, self._ahead = after or self._as_found(), None
            self._arrivals += was_torn and self._state is not State.TORN
            self._turn.begin()
            self._changed.notify_all()

    def _arrive(self, timeout_s: float, ahead: Ahead | None) -> None:
        self._resident.bring_in(timeout_s, ahead)

    def _leave(self, leave: Callable[[], SwapReport], then: State = State.OUT) -> None:
        """The lock is let go meanwhile."""
        self._state, after = State.LEAVING, None
        self._changed.release()
        try:
            leave()
            after = then
        finally:
            self._changed.acquire()
            self._state = after or self._as_found()
            self._changed.notify_all()

    def _as_found(self) -> State:
        """After an error, or an interrupt at any point."""
        if self._resident.torn:
            return State.TORN
        return State.RESIDENT if self._resident.resident else State.OUT

    def _see_whether_torn(self) -> None:
        if self._state in (State.OUT, State.TORN):
            self._state = self._as_found()
