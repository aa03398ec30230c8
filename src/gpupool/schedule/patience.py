"""Giving up on requests that have waited too long."""

from __future__ import annotations

from gpupool.schedule.work import Drop, State


def overdue(state: State, now_s: float) -> list[Drop]:
    """Requests with a place whose prefill has not begun, who came more than ``patience_s`` ago."""
    if state.patience_s is None:
        return []
    before_s = now_s - state.patience_s
    return [
        Drop(request)
        for device in state.devices
        for batch in (*device.groups, *device.batches)
        for request in batch.requests
        if request.arrival_s < before_s and not request.prefilled
    ]
