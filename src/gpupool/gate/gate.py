"""The gate: no work of a model touches device memory unless the model is resident.

A step opens before such work and closes after it. Memory is given up only with no step open; a
step that finds the model out brings it in first. Thread safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpupool._core import SwapReport
from gpupool.errors import LeaseTimeoutError, UsageError
from gpupool.gate.moves import Moves
from gpupool.gate.open_steps import OpenSteps
from gpupool.gate.revokes import Revokes
from gpupool.gate.turn import Turn
from gpupool.residency import Ahead, Resident, State

_POLL_S = 0.02


class Gate(Moves):
    """Steps, leases and yields of one model in one process."""

    def __init__(
        self,
        resident: Resident,
        *,
        lease_timeout_s: float,
        min_steps: int = 0,
        pause_s: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start out of memory; ``min_steps`` and ``pause_s`` are as ``Turn`` has them."""
        super().__init__(resident, Turn(min_steps, pause_s, clock))
        self._lease_timeout_s, self._clock = lease_timeout_s, clock
        self._steps = OpenSteps()
        self._revokes = Revokes(self._turn, self._changed)

    @property
    def used_s(self) -> float:
        """When the last step closed; now, while one is open."""
        return self._clock() if self._steps.count > 0 else self._turn.closed_s

    def open_step(self, timeout_s: float | None = None) -> None:
        """Wait until the model is resident and keep it so until ``close_step``.

        Raises LeaseTimeoutError when that takes longer than ``timeout_s`` (default: the gate's),
        UsageError once the gate is closed, and whatever bringing the model in raises, or giving up
        memory that is known to be wrong; the step is not open then.
        """
        limit_s = self._lease_timeout_s if timeout_s is None else timeout_s
        deadline_s = self._clock() + limit_s
        with self._changed:
            while not self._enter():
                if self._state is State.CLOSED:
                    raise UsageError("a closed model cannot be used")
                if self._state in (State.OUT, State.TORN):
                    self._bring_in(deadline_s - self._clock())
                    if self._distrusted:
                        continue
                    # The step that it came for goes first, even if a revoke waits already.
                    self._steps.open()
                    return
                if self._distrusted and self._may_leave():
                    self._leave(self._resident.give_up)
                    continue
                if self._ahead is not None:
                    self._ahead.hurry()
                if not self._changed.wait(max(0.0, deadline_s - self._clock())):
                    where = self._state.value
                    raise LeaseTimeoutError(f"waited {limit_s:g} s for a model that is {where}")

    def fetch_ahead(self, share: float, timeout_s: float | None = None) -> bool:
        """Bring the model in before a step asks for it, for ``share`` of the time; see Ahead.

        False unless it was out. Raises what ``open_step`` does, or SwapCancelledError.
        """
        with self._changed:
            if self._state is State.CLOSED:
                raise UsageError("a closed model cannot be used")
            if self._state is not State.OUT:
                return False
            limit_s = self._lease_timeout_s if timeout_s is None else timeout_s
            self._bring_in(limit_s, Ahead(share, self._resident.hurry))
        return True

    def close_step(self, *, counts: bool = True) -> None:
        """End a step; ``counts`` says whether it is one towards ``min_steps``."""
        with self._changed:
            self._steps.close()
            self._turn.step(counts=counts)
            self._changed.notify_all()

    @contextmanager
    def hold(self, timeout_s: float | None = None) -> Iterator[None]:
        """Keep the model resident for the length of a ``with`` block."""
        self.open_step(timeout_s)
        try:
            yield
        finally:
            self.close_step(counts=False)

    @contextmanager
    def out(self) -> Iterator[bool]:
        """Let nobody in for the length of a ``with`` block, which must be short.

        Waits while the model comes, unless that is ahead of use, or leaves; says whether it is out.
        """
        with self._changed:
            while self._state in (State.ARRIVING, State.LEAVING):
                if self._ahead is not None:
                    self._ahead.stop()
                self._changed.wait()
            try:
                yield self._state is State.OUT
            finally:
                self._see_whether_torn()

    @contextmanager
    def steady(self) -> Iterator[bool]:
        """Keep the model where it is for the length of a ``with`` block; whether it is resident.

        Waits while it comes or leaves. The block must be short: while the model is out, everybody
        waits for it. Raises UsageError for a torn or a closed model.
        """
        with self.out() as out:
            if self._state is State.CLOSED:
                raise UsageError("a closed model cannot be used")
            if self._state is State.TORN:
                raise UsageError("a model torn by a failed swap must be swapped out again first")
            if out:
                yield False
                return
            self._steps.open()
        try:
            yield True
        finally:
            self.close_step(counts=False)

    def set_idle(self, idle: bool) -> None:
        """Say whether the model has unfinished requests; an idle one leaves at once when asked."""
        with self._changed:
            if self._turn.idle == idle:
                return
            self._turn.idle = idle
            self._changed.notify_all()
        self._resident.set_idle(idle)

    def give_up(
        self,
        timeout_s: float | None = None,
        is_stale: Callable[[], bool] | None = None,
        keep: int = 0,
        park_s: float | None = None,
        longer_s: Callable[[], float] | None = None,
    ) -> bool:
        """Obey a revoke: wait for the last step to close, then give the memory up.

        ``keep`` pages may stay, warm; with ``park_s`` it parks before anybody is let in. With half
        of ``timeout_s`` gone ``min_steps`` no longer counts. False if the model was out already,
        another thread saw to it, or ``is_stale`` says that what was revoked has gone by itself.
        Raises LeaseTimeoutError if a step stays open for ``timeout_s``, and for what ``longer_s``
        puts that off by in the end, UsageError if it is this very thread's, and what giving up
        raises; the model is resident then, or torn.
        """

        def leave() -> SwapReport:
            return self._resident.give_up(0 if self._distrusted else keep, park_s)

        return self._give_up(timeout_s, is_stale, leave, State.OUT, longer_s)

    def park(self, deadline_s: float) -> None:
        """Let the images go to a file if the model is out; who wants it in meanwhile waits."""
        with self._changed:
            if out := self._state is State.OUT:
                self._state = State.LEAVING
        try:
            self._resident.park(deadline_s if out else None)
        finally:
            with self._changed:
                self._state = self._as_found() if out else self._state
                self._changed.notify_all()

    def cool(self, pages: int) -> None:
        """Give so many warm pages back, or what there is of them."""
        try:
            self._resident.cool(pages)
        finally:
            with self._changed:
                self._see_whether_torn()

    def _give_up(
        self,
        timeout_s: float | None,
        is_stale: Callable[[], bool] | None,
        leave: Callable[[], SwapReport],
        then: State,
        longer_s: Callable[[], float] | None = None,
    ) -> bool:
        stale = is_stale or (lambda: False)
        begun_s = self._clock()

        def left_s() -> float | None:
            if timeout_s is None:
                return None
            return begun_s + timeout_s + (longer_s() if longer_s else 0.0) - self._clock()

        with self._changed:
            if stale():
                return False
            if self._steps.are_mine():
                raise UsageError("a thread cannot give up a model in whose step it is")
            arrivals = self._arrivals
            with self._revokes.one(None if timeout_s is None else timeout_s / 2):
                if self._ahead is not None:
                    self._ahead.stop()
                while not self._may_leave():
                    gone = self._state in (State.OUT, State.CLOSED)
                    # Another thread may have given it up meanwhile, and brought it in anew, which
                    # a revoke may also be about: that knows by itself when it is stale.
                    anew = is_stale is None and self._arrivals != arrivals
                    if gone or anew or stale():
                        return False
                    self._wait(left_s, polls=is_stale is not None)
            self._leave(leave, then)
        return True

    def close(self) -> bool:
        """Give the memory up and let nobody in any more; False if another call did so.

        Raises what ``give_up`` does; the gate is open then.
        """
        while not self._give_up(None, None, self._resident.leave_for_good, State.CLOSED):
            with self._changed:
                if self._state in (State.OUT, State.CLOSED):
                    closes, self._state = self._state is State.OUT, State.CLOSED
                    self._changed.notify_all()
                    return closes
        return True

    def _enter(self) -> bool:
        # A model about to leave lets nobody in, or threads whose steps overlap would keep it for
        # ever. But a step that is open already must be able to finish, and what its thread needs
        # for that may be another step.
        leaves = self._revokes.count > 0 and self._turn.is_over(in_step=self._steps.count > 0)
        leaves = leaves or self._distrusted
        if self._state is not State.RESIDENT or (leaves and not self._steps.are_mine()):
            return False
        self._steps.open()
        return True

    def _may_leave(self) -> bool:
        at_rest = self._state is State.RESIDENT and self._steps.count == 0
        over = at_rest and (self._distrusted or self._turn.is_over())
        return over or self._state is State.TORN

    def _wait(self, left_s: Callable[[], float | None], *, polls: bool) -> None:
        limits_s = self._changes_in_s()
        if polls:
            limits_s.append(_POLL_S)  # nobody tells us that a revoke has become stale
        if (limit_s := left_s()) is not None:
            limits_s.append(limit_s)
        self._changed.wait(max(0.0, min(limits_s)) if limits_s else None)
        if (limit_s := left_s()) is not None and limit_s <= 0:
            raise LeaseTimeoutError("a model did not leave its memory as soon as it should have")

    def _changes_in_s(self) -> list[float]:
        at_rest = self._state is State.RESIDENT and self._steps.count == 0
        return self._turn.changes_in_s() if at_rest else []
