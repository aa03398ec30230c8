"""Autoscaling per model: a device is a model's while it has requests, and for a while after.

What a cluster does that starts an engine when requests come and ends it when none have come for a
time. Each model is scaled by itself: nobody takes a device that another model still has.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.schedule.fcfs import run_next
from gpupool.schedule.work import Action, Device, Join, Request, Rest, State, Switch


@dataclass(frozen=True, slots=True)
class Scaling:
    """When devices are started and given back."""

    start_s: float = 30.0
    """From the decision to start an engine until it takes requests, its load included."""
    idle_s: float = 60.0
    """A device without requests for so long is given back."""
    requests_max: int = 32
    """With so many on each of its devices a model gets another, if one is free."""


def decide(state: State, now_s: float, scaling: Scaling) -> list[Action]:
    """Place the first request that can be placed, else go on with the first device that is ready.

    A request goes to the device of its model with the fewest requests; where there is none, or all
    have ``requests_max``, to a free one, which is started for it. Requests without a place wait for
    a device to be given back, in order of arrival.
    """
    for request in state.arrived:
        device = _place(state, request, now_s, scaling)
        if device is not None:
            return [Join(request, device, device.batches[0] if device.batches else None)]
    if not state.ready:
        return []
    device = state.ready[0]
    if device.batches:
        batch = device.batches[0]
        came_back = batch.ran_s >= device.used_s + scaling.idle_s
        if device.current is not batch and came_back:  # also to the model that it had
            return [Switch(device, batch)]
        return [run_next(state, device)]
    given_back_s = device.used_s + scaling.idle_s
    return [Rest(device, given_back_s if now_s < given_back_s and not device.unused else None)]


def _place(state: State, request: Request, now_s: float, scaling: Scaling) -> Device | None:
    own: Device | None = None
    own_length = 0
    free: Device | None = None
    for device in state.devices:
        if _model(device) == request.model and not _is_free(device, now_s, scaling):
            length = len(device.batches[0].requests) if device.batches else 0
            if own is None or length < own_length:
                own, own_length = device, length
        elif free is None and _is_free(device, now_s, scaling):
            free = device
    if own is None or (own_length >= scaling.requests_max and free is not None):
        return free
    return own


def _model(device: Device) -> int | None:
    return device.batches[0].model if device.batches else device.model


def _is_free(device: Device, now_s: float, scaling: Scaling) -> bool:
    return device.unused or (not device.batches and now_s >= device.used_s + scaling.idle_s)
