"""First come, first served, whole requests: how ServerlessLLM shares devices.

A device runs the requests of one model to their ends before it switches to another.
"""

from __future__ import annotations

from gpupool.schedule.patience import overdue
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Join,
    Prefill,
    Request,
    Rest,
    State,
    Switch,
)

BATCH_MAX = 4
"""With so many at the end of a queue the next request of that model goes elsewhere."""


def decide(state: State, now_s: float) -> list[Action]:
    """Place the first request that has no place, else start the first device that can run.

    A request joins the shortest batch of its model at the end of a queue, or goes to a device that
    still has the model and nothing to do; if all of them are full, to the device whose last step is
    longest ago, one that was never used first. Nothing overtakes within a queue, so everything is
    served.
    """
    if state.arrived:
        request = state.arrived[0]
        device, batch = _place(state, request)
        return [Join(request, device, batch), *overdue(state, now_s)]
    return [run_next(state, state.ready[0])] if state.ready else []


def _place(state: State, request: Request) -> tuple[Device, Batch | None]:
    serving: Device | None = None
    swap: Device | None = None
    length_min = 0
    for device in state.devices:
        if device.batches:
            last, length = device.batches[-1].model, len(device.batches[-1].requests)
        else:
            last, length = device.model if device.model is not None else -1, 0
        if last == request.model:
            if serving is None or length < length_min:
                serving, length_min = device, length
        elif swap is None or (not device.unused, device.used_s) < (not swap.unused, swap.used_s):
            swap = device
    if serving is None or (length_min >= BATCH_MAX and swap is not None):
        assert swap is not None
        return swap, None
    return serving, serving.batches[-1] if serving.batches else None


def run_next(state: State, device: Device) -> Action:
    """What a device does next that runs the batches it has in order, each to its end."""
    if not device.batches:
        return Rest(device)
    batch = device.batches[0]
    if device.model != batch.model:
        return Switch(device, batch)
    room = state.costs[batch.model].kv_tokens_max
    fresh: list[Request] = []
    for place, request in enumerate(batch.requests):
        room -= request.context_tokens
        if room < 0 and place > 0:  # one alone is run even if it should grow too long
            break
        if not request.prefilled:
            fresh.append(request)
    if fresh:
        return Prefill(device, batch, tuple(fresh))
    return Decode(device, batch, float("inf"))
