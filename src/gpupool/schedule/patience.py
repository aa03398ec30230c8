"""Giving up on requests that have waited too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps

from gpupool.schedule.work import Action, Drop, Request, State

PAST_S = 1e-3
"""So much after its time a request has surely waited for longer."""

Decide = Callable[[State, float], list[Action]]


def patient(decide: Decide) -> Decide:
    """The policy, and where it has nothing to do, giving up what is overdue."""

    @wraps(decide)
    def decided(state: State, now_s: float) -> list[Action]:
        return decide(state, now_s) or [*overdue(state, now_s)]

    return decided


def overdue_at_s(state: State) -> float | None:
    """When the next request will have waited for longer than ``patience_s``, if one may."""
    if state.patience_s is None:
        return None
    waiting_s = [request.arrival_s for request in _waiting(state)]
    return min(waiting_s) + state.patience_s + PAST_S if waiting_s else None


def overdue(state: State, now_s: float) -> list[Drop]:
    """Requests whose prefill has not begun, who came more than ``patience_s`` ago."""
    if state.patience_s is None:
        return []
    before_s = now_s - state.patience_s
    return [Drop(request) for request in _waiting(state) if request.arrival_s < before_s]


def _waiting(state: State) -> Iterator[Request]:
    """Those without a place, and those with one whose prefill has not begun."""
    yield from state.arrived
    for device in state.devices:
        for batch in (*device.groups, *device.batches):
            for request in batch.requests:
                if not request.prefilled:
                    yield request
