"""How the memory of a rank comes in: once all want it, after the rank before, and maybe again."""

from __future__ import annotations

import sys
import threading
import time

from gpupool.errors import SwapCancelledError
from gpupool.gang import protocol as g
from gpupool.gang.member import Member
from gpupool.gang.standing import Standing
from gpupool.residency import Ahead, Resident

ALL_PAGES = sys.maxsize  # more than there are


class Coming:
    """Of one rank, for its gate, whose lock is not held."""

    def __init__(
        self, resident: Resident, member: Member, standing: Standing, lock: threading.Condition
    ) -> None:
        """``lock`` is what guards ``standing``."""
        self._resident, self._member, self._standing = resident, member, standing
        self._lock = lock
        self.asks = False
        """It is about to ask for its lease: it has none."""
        self.keeps = ALL_PAGES
        """Of the pages that stay warm if it goes back."""

    def arrive(self, timeout_s: float, ahead: Ahead | None) -> None:
        """Come with the others, however often all go back.

        Nothing but this changes the standing before the gang goes.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._arrives(deadline_s, ahead):
            with self._lock:
                self._standing.asks_anew()

    def _arrives(self, deadline_s: float, ahead: Ahead | None) -> bool:
        """False if all go back, and this rank has."""
        turn, step = self._standing.turn, self._standing.opened
        self.asks = True
        self._member.say(g.Wants(step))
        try:
            if not self._member.await_come(turn, _left_s(deadline_s)):
                return False
        finally:
            self.asks = False
        try:
            self._resident.bring_in(_left_s(deadline_s), ahead)
        except SwapCancelledError:
            self._member.check()
            return False
        try:
            self._member.say(g.Here())
            if self._member.await_go(turn, _left_s(deadline_s)):
                return True
        except BaseException:
            self._resident.give_up()
            raise
        self._resident.give_up(self.keeps)
        return False


def _left_s(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())
