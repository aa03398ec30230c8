"""What an engine goes through, and when it is restarted. Pure: no clock, no process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """Where an engine is in its life."""

    QUEUED = "queued"  # another engine starts before it
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "restarting"  # it died and waits for its next start
    FAILED = "failed"  # for good
    STOPPED = "stopped"


_FOLLOWS = {
    Phase.QUEUED: {Phase.STARTING, Phase.STOPPED},
    Phase.STARTING: {Phase.READY, Phase.BACKING_OFF, Phase.FAILED, Phase.STOPPED},
    Phase.READY: {Phase.BACKING_OFF, Phase.FAILED, Phase.STOPPED},
    Phase.BACKING_OFF: {Phase.STARTING, Phase.STOPPED},
    Phase.FAILED: {Phase.STOPPED},
    Phase.STOPPED: set[Phase](),
}


@dataclass(frozen=True)
class RestartPolicy:
    """At most `max_restarts` within `window_s`; the delay doubles with each death in it."""

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    max_restarts: int = 5
    window_s: float = 600.0

    def delay_s(self, deaths_in_window: int) -> float:
        """Seconds to wait after the n-th death within the window, n counted from 1."""
        # The exponent is bounded first: a float cannot hold every power of two.
        return min(self.max_delay_s, self.first_delay_s * 2.0 ** min(deaths_in_window - 1, 60))


@dataclass(frozen=True)
class Life:
    """An engine's past and present, as far as it decides its future."""

    phase: Phase = Phase.QUEUED
    was_ready: bool = False
    restarts: int = 0
    deaths: tuple[float, ...] = ()  # times within the window, oldest first
    delay_s: float = 0.0  # before the next start

    @property
    def is_over(self) -> bool:
        """Whether no start will follow."""
        return self.phase in (Phase.FAILED, Phase.STOPPED)


def start(life: Life) -> Life:
    """The engine's process is being started."""
    again = life.phase is Phase.BACKING_OFF
    return replace(_enter(life, Phase.STARTING), restarts=life.restarts + again, delay_s=0.0)


def become_ready(life: Life) -> Life:
    """The engine answers."""
    return replace(_enter(life, Phase.READY), was_ready=True)


def die(life: Life, policy: RestartPolicy, now_s: float) -> Life:
    """The engine ended by itself. One that never was ready is not tried again.

    A death while it starts counts like any other, so that an engine which cannot come up
    any more ends as failed.
    """
    deaths = (*(t for t in life.deaths if now_s - t < policy.window_s), now_s)
    if not life.was_ready or len(deaths) > policy.max_restarts:
        return replace(_enter(life, Phase.FAILED), deaths=deaths)
    delay_s = policy.delay_s(len(deaths))
    return replace(_enter(life, Phase.BACKING_OFF), deaths=deaths, delay_s=delay_s)


def stop(life: Life) -> Life:
    """The supervisor wants it gone."""
    return life if life.phase is Phase.STOPPED else _enter(life, Phase.STOPPED)


def _enter(life: Life, phase: Phase) -> Life:
    if phase not in _FOLLOWS[life.phase]:
        raise ValueError(f"an engine that is {life.phase} cannot become {phase}")
    return replace(life, phase=phase)
