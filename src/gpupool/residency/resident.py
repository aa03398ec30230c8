"""What a gate asks of the memory behind it."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from gpupool._core import SwapReport
from gpupool.residency.ahead import Ahead


class State(Enum):
    """Where the memory is, as a gate knows it."""

    OUT = "out"
    ARRIVING = "arriving"
    RESIDENT = "resident"
    LEAVING = "leaving"
    TORN = "torn"
    CLOSED = "closed"


class Resident(Protocol):
    """What the gate guards: something that can be brought in and given up, all or nothing."""

    def bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> SwapReport:
        """Get pages and restore; raises and stays out, or is torn, on an error."""

    def give_up(self, keep: int = 0, park_s: float | None = None) -> SwapReport:
        """Save, unmap and give the pages back; raises and stays resident, or is torn, on an error.

        ``keep`` of them may stay, warm. Of a torn one it undoes what is left to undo. With
        ``park_s`` it parks then.
        """

    def park(self, deadline_s: float | None) -> None:
        """Let the images go to a file within ``deadline_s``, unless that is None, and say so."""

    def hurry(self) -> None:
        """What is brought in ahead is waited for now."""

    def cool(self, pages: int) -> None:
        """Give so many warm pages back, or what there is of them."""

    def leave_for_good(self) -> SwapReport:
        """The same, with nothing to be kept that only a later bring-in would need."""

    @property
    def resident(self) -> bool:
        """Whether any of it is there."""

    @property
    def torn(self) -> bool:
        """Neither resident nor out, after an error that could not be undone at once."""

    def set_idle(self, idle: bool) -> None:
        """Tell the arbiter whether there is unfinished work."""
