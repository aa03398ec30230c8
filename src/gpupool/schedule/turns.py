"""Turns: first come, first served; the least recently used idle model leaves first.

With a turn length of 0 this is plain least-recently-used eviction, the embedded default. With a
longer one it is round robin: a model that others wait for leaves once its turn has passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    """What it holds, or needs if it holds none."""
    state: Residency
    since_s: float
    """When it entered its state."""
    used_s: float
    """When it was last known to have work."""
    idle: bool
    """No request is unfinished."""
    stays_until_s: float = 0.0
    """It cannot leave before."""
    begins_with: int = 0
    """A waiting model can use so many pages before the rest of them; 0 if it has them or cannot."""


@dataclass(frozen=True)
class PoolView:
    """What a policy may know of the pool."""

    free_pages: int
    models: tuple[ModelView, ...]


@dataclass(frozen=True)
class Decision:
    """Whom to grant their pages now, whom to revoke, and when to decide again at the latest.

    ``begin`` is to be granted what it can begin with; it goes on waiting for the rest.
    """

    grant: tuple[int, ...] = ()
    begin: int | None = None
    revoke: tuple[int, ...] = ()
    wake_at_s: float | None = None


def decide(view: PoolView, now_s: float, turn_s: float) -> Decision:
    """Grant in order of arrival; when the first in line does not fit, make room for it.

    Nobody overtakes the first in line, so nobody starves: with n models waiting, each is granted
    after at most n turns (and the time its predecessors take to leave). A model is revoked only
    when the room made suffices, idle models before busy ones, and a busy one only after its turn.
    While they leave, the first in line may begin with a part of its pages. It alone holds pages
    while it waits, and those who leave wait for nobody, so there is no deadlock.
    """
    free = view.free_pages
    grants: list[int] = []
    waiting = sorted(
        (m for m in view.models if m.state is Residency.WAITING), key=lambda m: (m.since_s, m.key)
    )
    for model in waiting:
        if model.pages <= free:
            grants.append(model.key)
            free -= model.pages
            continue
        leaving = sum(m.pages for m in view.models if m.state is Residency.LEAVING)
        missing = model.pages - free - leaving
        begin = model.key if 0 < model.begins_with <= free else None
        if missing <= 0:
            return Decision(tuple(grants), begin)
        victims, wake_at_s = _victims(view, missing, now_s, turn_s)
        return Decision(tuple(grants), begin if victims else None, victims, wake_at_s)
    return Decision(tuple(grants))


def _victims(
    view: PoolView, missing: int, now_s: float, turn_s: float
) -> tuple[tuple[int, ...], float | None]:
    """The models to revoke for ``missing`` pages, or none and when to look again."""
    resident = [m for m in view.models if m.state is Residency.RESIDENT]
    resident.sort(key=lambda m: (not m.idle, m.used_s if m.idle else m.since_s, m.key))
    chosen: list[int] = []
    wake_at_s: float | None = None
    for model in resident:
        ends_s = max(now_s if model.idle else model.since_s + turn_s, model.stays_until_s)
        if ends_s > now_s:
            wake_at_s = ends_s if wake_at_s is None else min(wake_at_s, ends_s)
            continue
        chosen.append(model.key)
        missing -= model.pages
        if missing <= 0:
            return tuple(chosen), None
    return (), wake_at_s
