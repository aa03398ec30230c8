"""Turns: first come, first served; the least recently used idle model leaves first.

With a turn length of 0 this is plain least-recently-used eviction, the embedded default. With a
longer one it is round robin: a model that others wait for leaves once its turn has passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Residency(StrEnum):
    """Where a model's memory is, as the arbiter knows it."""

    OUT = "out"
    WAITING = "waiting"
    RESIDENT = "resident"
    LEAVING = "leaving"


@dataclass(frozen=True)
class ModelView:
    """What a policy may know of one model. Times are seconds of one monotonic clock."""

    key: int
    pages: int
    """What it needs yet if it waits, gives back if it leaves, and holds if it is resident."""
    state: Residency
    since_s: float
    """When it entered its state."""
    used_s: float
    """When it was last known to have work."""
    idle: bool
    """No request is unfinished."""
    stays_until_s: float = 0.0
    """It cannot leave, or give up warm pages, before."""
    begins_with: int = 0
    """A waiting model can use so many of its pages before the rest of them."""
    warmable: int = 0
    """Of a resident model's pages so many can stay, warm, when it leaves."""
    warm: int = 0
    """Pages that it holds without being resident, and can be asked for."""
    cooling: int = 0
    """Pages that it was asked for and has not given yet."""
    answers: bool = True
    """It was asked for none, or said what became of it; before that it can be granted nothing."""
    ahead: bool = False
    """It waits for nothing yet: it wants its memory for later."""
    rank: int = 0
    """The lower the sooner it comes and the later it leaves; those of one rank go by time."""
    turn_ends_s: float | None = None
    """Before that it does not leave while it is busy; None: after a turn of the usual length."""


@dataclass(frozen=True)
class PoolView:
    """What a policy may know of the pool."""

    free_pages: int
    models: tuple[ModelView, ...]


class Revoke(NamedTuple):
    """A model is to leave, and may keep so many pages warm."""

    key: int
    keep: int = 0


class Begin(NamedTuple):
    """A model that waits is granted so many of its pages now."""

    key: int
    pages: int


class Cool(NamedTuple):
    """A model that is not resident is to give so many of its warm pages back."""

    key: int
    pages: int


@dataclass(frozen=True)
class Decision:
    """Whom to grant pages now, whom to ask for theirs, and when to decide again at the latest."""

    grant: tuple[int, ...] = ()
    begin: Begin | None = None
    revoke: tuple[Revoke, ...] = ()
    wake_at_s: float | None = None
    cool: tuple[Cool, ...] = ()


def decide(view: PoolView, now_s: float, turn_s: float) -> Decision:
    """Grant in order of arrival; when the first in line does not fit, make room for it.

    Nobody overtakes the first in line, so, with all of one rank, nobody starves: with n models
    waiting, each is granted after at most n turns (and the time its predecessors take to leave);
    with ranks it is up to who sets them. Room is made of warm pages
    first, then of models, and nobody is asked unless the room made suffices: idle models before
    busy ones, and a busy one only after its turn. No more is taken than is needed, but from a model
    that leaves what cannot stay. While they leave, the first in line may begin with pages as they
    come. It alone takes pages while it waits, and those who give some wait for nobody, so there is
    no deadlock. Who asks ahead comes after all others and has no busy model leave.
    """
    free = view.free_pages
    grants: list[int] = []
    waiting = sorted(
        (m for m in view.models if m.state is Residency.WAITING),
        key=lambda m: (m.ahead, m.rank, m.since_s, m.key),
    )
    for model in waiting:
        if not model.answers:
            return Decision(tuple(grants))
        if model.pages <= free:
            grants.append(model.key)
            free -= model.pages
            continue
        coming = sum(m.pages for m in view.models if m.state is Residency.LEAVING)
        coming += sum(m.cooling for m in view.models)
        missing = model.pages - free - coming
        at_once = min(model.begins_with, free)
        begin = Begin(model.key, at_once) if at_once > 0 else None
        if missing <= 0:
            return Decision(tuple(grants), begin)
        cool = warm_pages(view, missing, now_s, besides=(*grants, model.key))
        missing -= sum(asked.pages for asked in cool)
        victims, wake_at_s = _victims(view, missing, now_s, turn_s, idle_only=model.ahead)
        if missing > 0 and not victims:
            ends_s = [m.stays_until_s for m in view.models if m.warm > 0]
            later_s = [end_s for end_s in (wake_at_s, *ends_s) if end_s and end_s > now_s]
            return Decision(tuple(grants), wake_at_s=min(later_s, default=None))
        return Decision(tuple(grants), begin, victims, None, cool)
    return Decision(tuple(grants))


def warm_pages(
    view: PoolView, missing: int, now_s: float, besides: tuple[int, ...] = ()
) -> tuple[Cool, ...]:
    """Whom to ask for up to ``missing`` warm pages: those longest out of use, who waits last.

    Nobody ``besides`` is asked.
    """
    have = [
        m
        for m in view.models
        if m.warm > 0 and m.key not in besides and m.answers and m.stays_until_s <= now_s
    ]
    have.sort(key=lambda m: (m.state is Residency.WAITING, m.used_s, m.key))
    asked: list[Cool] = []
    for model in have:
        if missing <= 0:
            break
        asked.append(Cool(model.key, min(model.warm, missing)))
        missing -= asked[-1].pages
    return tuple(asked)


def _victims(
    view: PoolView, missing: int, now_s: float, turn_s: float, *, idle_only: bool
) -> tuple[tuple[Revoke, ...], float | None]:
    """The models to revoke for ``missing`` pages, or none and when to look again."""
    resident = [m for m in view.models if m.state is Residency.RESIDENT]
    resident.sort(key=lambda m: order_of_leaving(m.idle, m.rank, m.used_s, m.since_s, m.key))
    chosen: list[Revoke] = []
    wake_at_s: float | None = None
    for model in resident:
        if missing <= 0:
            break
        if idle_only and not model.idle:
            continue
        busy_until_s = model.since_s + turn_s if model.turn_ends_s is None else model.turn_ends_s
        ends_s = max(now_s if model.idle else busy_until_s, model.stays_until_s)
        if ends_s > now_s:
            wake_at_s = ends_s if wake_at_s is None else min(wake_at_s, ends_s)
            continue
        keep = min(model.warmable, max(0, model.pages - missing))
        chosen.append(Revoke(model.key, keep))
        missing -= model.pages - keep
    if missing <= 0:
        return tuple(chosen), None
    return (), wake_at_s


def order_of_leaving(
    idle: bool, rank: int, used_s: float, since_s: float, key: int
) -> tuple[bool, int, float, int]:
    """Of two resident models the one with the smaller is asked to leave first."""
    return (False, 0, used_s, key) if idle else (True, -rank, since_s, key)
