"""Where a block is true."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class State(IntEnum):
    """What is known of one block; small numbers, for an array of them."""

    UNKNOWN = 0
    """Nothing of it is worth keeping."""
    WRITTEN = 1
    """True on the device alone."""
    SAVING = 2
    """The same, with a copy of it under way."""
    SAVED = 3
    """True on both sides."""
    AWAY = 4
    """True on the host alone."""
    COMING = 5
    """The same, with a copy of it under way."""


@dataclass
class MovedBytes:
    """Of rows that have arrived, since the start."""

    saved: int = 0
    restored: int = 0
    verified: int = 0
    recopied: int = 0


@dataclass
class UnderWay:
    """How long moves of one direction were in flight, from the first to when none was seen to be.

    Who looks late sees it late: the time is that or less. An error ends it: nobody looks then.
    """

    seconds: float = 0.0
    _moves: int = 0
    _since_s: float = 0.0

    def begins(self, now_s: float) -> None:
        """One more is in flight."""
        if self._moves == 0:
            self._since_s = now_s
        self._moves += 1

    def ended(self, now_s: float) -> None:
        """One fewer is."""
        self._moves -= 1
        if self._moves == 0:
            self.seconds += now_s - self._since_s


@dataclass(frozen=True)
class KvCacheStatistics:
    """How many blocks are where, and what was moved."""

    written: int  # since they were last saved
    unbacked: int  # of these, without a place on the host
    saved: int
    away: int
    coming: int
    bytes_saved: int  # that have arrived, since the start
    bytes_restored: int
    bytes_verified: int  # of these, found to be what was saved
    bytes_recopied: int  # of these, that were so only the second time
    saving_s: float  # while any was under way, as far as was seen
    restoring_s: float

    @classmethod
    def of(
        cls,
        state: npt.NDArray[np.uint8],
        unbacked: int,
        moved: MovedBytes,
        saving: UnderWay,
        restoring: UnderWay,
    ) -> KvCacheStatistics:
        """Count the states of all blocks."""
        count = np.bincount(state, minlength=len(State))
        return cls(
            written=int(count[State.WRITTEN] + count[State.SAVING]),
            unbacked=unbacked,
            saved=int(count[State.SAVED]),
            away=int(count[State.AWAY]),
            coming=int(count[State.COMING]),
            bytes_saved=moved.saved,
            bytes_restored=moved.restored,
            bytes_verified=moved.verified,
            bytes_recopied=moved.recopied,
            saving_s=saving.seconds,
            restoring_s=restoring.seconds,
        )
