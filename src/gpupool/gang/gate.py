"""The gate of a rank: a step begins, and the memory goes, only as all ranks have agreed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from gpupool._core import SwapReport
from gpupool.errors import GangBrokenError, LeaseTimeoutError, NotBegunError
from gpupool.gang import protocol as g
from gpupool.gang.coming import ALL_PAGES, Coming
from gpupool.gang.member import Member
from gpupool.gang.standing import Standing
from gpupool.gate import Gate
from gpupool.residency import Ahead, Resident, State

_POLL_S = 0.02
_BEGINS_S = 15.0  # a turn that has not begun by then is put off, however long its steps may take
_TOGETHER = 7 / 8  # of a revoke's time is for leaving as all ranks do; then this one leaves alone
_LATE = "its memory had to be given back, and another rank did not answer"


def _never() -> float:
    return math.inf


class GangGate(Gate):
    """As ``Gate``, for one rank of a gang. Steps are those that all ranks open in the same order.

    Whoever gives the memory up without a revoke has all ranks do so between the same steps.
    """

    def __init__(
        self,
        resident: Resident,
        *,
        member: Member,
        lease_timeout_s: float,
        min_steps: int = 0,
        pause_s: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start out of memory, and hear the leader from now on. Otherwise as ``Gate``."""
        super().__init__(
            resident,
            lease_timeout_s=lease_timeout_s,
            min_steps=min_steps,
            pause_s=pause_s,
            clock=clock,
        )
        self._member = member
        self._standing = Standing()
        self._coming = Coming(resident, member, self._standing, self._changed)
        self._alone_at_s = _never  # when it gives up what is revoked without the others
        self._leaving_alone = 0  # threads that give the memory up as all ranks do by themselves
        member.start(self)

    def open_step(self, timeout_s: float | None = None) -> None:
        """As ``Gate.open_step``; a rank without a step that the others have ends the gang."""
        try:
            super().open_step(timeout_s)
        except BaseException as error:
            self._member.fail(error)
            raise

    def fetch_ahead(self, share: float, timeout_s: float | None = None) -> bool:
        """Do nothing: what one rank fetches ahead is of no use without the others."""
        return False

    def give_up(
        self,
        timeout_s: float | None = None,
        is_stale: Callable[[], bool] | None = None,
        keep: int = 0,
        park_s: float | None = None,
        longer_s: Callable[[], float] | None = None,
    ) -> bool:
        """As ``Gate.give_up``; what is revoked goes when all ranks leave, which this has them do.

        If its turn has not begun in half of ``timeout_s``, at most 15 s, all ranks go back, or it
        stays: raises NotBegunError. If the others do not answer for most of it the gang has ended,
        and this rank leaves alone.
        """
        leave = partial(self._resident.give_up, keep, park_s)
        if is_stale is None or timeout_s is None:
            return self._leave_alone(timeout_s, leave, State.OUT)

        def stale() -> bool:
            # Who asks has no lease: the last one was revoked.
            return self._coming.asks or is_stale()

        def alone_at_s() -> float:
            return now_s + _TOGETHER * (timeout_s + (longer_s() if longer_s else 0.0))

        now_s = self._clock()
        hurry_at_s = now_s + min(timeout_s / 2, _BEGINS_S)
        with ExitStack() as revoked:
            with self._changed:
                if stale() or self._state is State.OUT:
                    return False
                # That the turn may be cut short is the leader's to say.
                revoked.enter_context(self._revokes.one(hurry_s=None))
                turn, self._alone_at_s = self._standing.turn, alone_at_s
            try:
                self._member.say(g.Leave(turn, hurry_at_s))
                self._await_begun(turn, hurry_at_s, stale, keep)
                left_s = now_s + timeout_s - self._clock()
                return self._or_break(left_s, stale, leave, longer_s=longer_s)
            finally:
                with self._changed:
                    self._alone_at_s = _never

    def close(self) -> bool:
        """As ``Gate.close``; the gang ends with its first rank."""
        self._member.hang_up("it was closed")  # which it hears itself
        return super().close()

    # What the leader says, on the member's threads.

    def halt(self, turn: int, hurry_at_s: float | None) -> int:
        """Begin no step of ``turn`` for now; the last one that has begun.

        With ``hurry_at_s`` what is left of a turn, as ``Turn`` has it, is waited for.
        """
        with self._changed:
            if hurry_at_s is None:
                return self._standing.halt(turn)
            with self._revokes.one(hurry_at_s - self._clock()):
                while self._goes_on(turn):
                    limits_s = [self._turn.hurry_at_s - self._clock(), *super()._changes_in_s()]
                    self._changed.wait(max(0.0, min(limits_s)))
                return self._standing.halt(turn)

    def part(self, turn: int, step: int) -> bool:
        """Go on up to ``step``; whether ``leave`` is to be called, since nobody else waits to."""
        with self._changed:
            told = self._standing.part(turn, step)
            self._changed.notify_all()
            return told and self._revokes.count == 0

    def leave(self, turn: int) -> None:
        """Leave ``turn``, as agreed; all that can stay warm does, since nobody here asked for it.

        Whoever leaves by itself meanwhile may have come back for the next one already.
        """

        def stale() -> bool:
            return turn != self._standing.turn

        self._or_break(None, stale, partial(self._resident.give_up, ALL_PAGES))

    def stay(self, turn: int) -> None:
        """Keep the memory that has come for ``turn``, which has not begun."""
        with self._changed:
            self._standing.stays = turn
            self._changed.notify_all()

    def broken(self, why: str) -> None:
        """No step begins any more, and revokes are obeyed alone."""
        with self._changed:
            self._standing.broken = self._standing.broken or why
            self._changed.notify_all()

    # What Gate asks; with its lock held.

    def _enter(self) -> bool:
        if self._steps.are_mine():  # part of a step that has begun
            return super()._enter()
        if self._standing.broken and self._state is not State.CLOSED:
            raise GangBrokenError(self._standing.broken)
        if self._state is not State.RESIDENT or not self._standing.may_open():
            return False
        self._standing.opened += 1
        self._steps.open()
        return True

    def _may_leave(self) -> bool:
        if self._standing.broken or self._leaving_alone > 0 or self._state is State.TORN:
            return super()._may_leave()
        there = self._state is State.RESIDENT and self._steps.count == 0
        return there and (self._standing.may_leave() or self._gives_in())

    def _changes_in_s(self) -> list[float]:
        # The turn is the leader's to look at.
        alone = self._standing.broken or self._leaving_alone > 0
        return super()._changes_in_s() if alone else []

    def _bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> None:
        self._standing.asks()
        super()._bring_in(timeout_s, ahead)

    def _arrive(self, timeout_s: float, ahead: Ahead | None) -> None:
        self._coming.arrive(timeout_s, ahead)

    def _await_begun(
        self, turn: int, hurry_at_s: float, is_stale: Callable[[], bool], keep: int
    ) -> None:
        """Until the turn that it comes for has begun, or all go back, which they do from then on.

        Raises NotBegunError if they do not.
        """
        has_waited = False
        with self._changed:
            self._coming.keeps = keep
            try:
                while self._state is State.ARRIVING and self._standing.turn == turn:
                    if self._standing.broken or is_stale() or self._gives_in():
                        return
                    if self._standing.stays == turn:
                        self._standing.stays = 0  # it may be asked again
                        raise NotBegunError("its engine waits for the devices of other ranks")
                    if not has_waited and self._clock() >= hurry_at_s:
                        has_waited = True
                        self._member.say(g.Retreat(turn))
                    self._changed.wait(_POLL_S)
            finally:
                self._coming.keeps = ALL_PAGES

    def _gives_in(self) -> bool:
        """End the gang, with the lock held, rather than be killed: the others may be stopped."""
        if self._clock() < self._alone_at_s():
            return False
        self._member.fail(LeaseTimeoutError(_LATE))
        self._member.hang_up(_LATE)  # also where the leader is
        self._standing.broken = self._standing.broken or _LATE
        return True

    def _leave_alone(
        self, timeout_s: float | None, leave: Callable[[], SwapReport], then: State
    ) -> bool:
        with self._changed:
            self._leaving_alone += 1
        try:
            return self._or_break(timeout_s, None, leave, then)
        finally:
            with self._changed:
                self._leaving_alone -= 1

    def _or_break(
        self,
        timeout_s: float | None,
        is_stale: Callable[[], bool] | None,
        leave: Callable[[], SwapReport],
        then: State = State.OUT,
        longer_s: Callable[[], float] | None = None,
    ) -> bool:
        """A rank that cannot leave where the others do ends the gang."""
        try:
            return self._give_up(timeout_s, is_stale, leave, then, longer_s)
        except BaseException as error:
            if not self._steps.are_mine():  # else it was a mistake, which changed nothing
                self._member.fail(error)
            raise

    def _goes_on(self, turn: int) -> bool:
        if turn != self._standing.turn or self._standing.broken:
            return False
        if self._state is State.ARRIVING:  # it is let go this moment
            return True
        over = self._turn.is_over(in_step=self._steps.count > 0)
        return self._state is State.RESIDENT and not over
