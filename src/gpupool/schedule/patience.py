"""Giving up on requests that have waited too long."""

from __future__ import annotations

from collections.abc import Iterator

from gpupool.schedule.work import Drop, Request, State


def overdue(state: State, now_s: float) -> list[Drop]:
    """Requests with a place whose prefill has not begun, who came more than ``patience_s`` ago."""
    if state.patience_s is None:
        return []
    before_s = now_s - state.patience_s
    return [
        Drop(request)
        for request in _placed(state)
        if not request.prefilled and request.arrival_s < before_s
    ]


def _placed(state: State) -> Iterator[Request]:
    for device in state.devices:
        for batch in (*device.groups, *device.batches):
            yield from batch.requests
