"""Whose images make room in host memory: those of the models used least recently.

Models that are out go first; then, as for device memory, idle ones and those whose turn has passed,
which leave and park at once. Nobody who waits for a lease or is about to have one is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpupool.schedule.turns import Residency


@dataclass(frozen=True)
class ImagesView:
    """What the policy may know of one model's images. Times are as in ``ModelView``."""

    key: int
    size_bytes: int
    """Of host memory, what parking them frees."""
    file_bytes: int
    """Of the limit on files, what parking them takes beyond what they have there."""
    state: Residency
    since_s: float
    used_s: float
    idle: bool
    not_before_s: float = 0.0
    """It cannot park, or leave, before."""
    comes: bool = False
    """It reads its images back, to be used."""
    never: bool = False
    """It could not when it was asked last, and will not soon; it may be asked again later."""


class Wish(NamedTuple):
    """A model is to park, or to leave and park."""

    key: int
    leaves: bool


class Wishes(NamedTuple):
    """Whom to ask now, when to look again, and whether that can ever be enough."""

    asked: tuple[Wish, ...] = ()
    wake_at_s: float | None = None
    possible: bool = True


def whom_to_park(
    views: tuple[ImagesView, ...],
    missing_bytes: int,
    file_room_bytes: int,
    now_s: float,
    turn_s: float,
    *,
    idle_only: bool = False,
    out_only: bool = False,
) -> Wishes:
    """Ask for ``missing_bytes`` of host memory, used least recently first.

    With ``idle_only`` no busy model leaves, and with ``out_only`` none does at all. Nobody is asked
    where all that could ever be parked is not enough.
    """
    views = tuple(view for view in views if view.file_bytes <= file_room_bytes)
    able = [view for view in views if not view.never]
    if sum(view.size_bytes for view in able) < missing_bytes:
        return Wishes(possible=False)
    asked: list[Wish] = []
    # Those that cannot now may be who is asked next: others that could may come to nothing.
    later_s = [view.not_before_s for view in views if view.never]
    for view in sorted(able, key=_order):
        if missing_bytes <= 0:
            break
        resident = view.state is Residency.RESIDENT
        there = view.state in (Residency.OUT, Residency.RESIDENT) and not view.comes
        if not there or (resident and out_only):
            continue
        if view.file_bytes > file_room_bytes:
            continue
        if resident and idle_only and not view.idle:
            continue
        turn_ends_s = view.since_s + turn_s if resident and not view.idle else 0.0
        ready_s = max(view.not_before_s, turn_ends_s)
        if ready_s > now_s:
            later_s.append(ready_s)
            continue
        asked.append(Wish(view.key, resident))
        missing_bytes -= view.size_bytes
        file_room_bytes -= view.file_bytes
    return Wishes(tuple(asked), min(later_s, default=None) if missing_bytes > 0 else None)


def _order(view: ImagesView) -> tuple[bool, bool, float, int]:
    resident = view.state is Residency.RESIDENT
    busy = resident and not view.idle
    return resident, busy, view.since_s if busy else view.used_s, view.key
