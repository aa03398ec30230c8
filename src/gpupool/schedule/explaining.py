"""Decisions in words."""

from __future__ import annotations

from collections.abc import Callable

from gpupool.schedule.work import Action, Batch, Decode, Device, Prefill, Refuse, State, Switch

_OTHERS_MAX = 3


def explain(
    state: State, now_s: float, action: Action, name_of: Callable[[int], str]
) -> str | None:
    """Why a device switches, or whom it gives a turn, before the action is applied.

    None for what follows from that: a request that gets its place, a turn that goes on, a rest.
    """
    match action:
        case Switch(device, batch, _):
            doing = f"switch to {_described(state, device, batch, now_s, name_of)}"
        case Prefill(device, batch, _, _, float(turn_s)) | Decode(device, batch, float(turn_s), _):
            length = "to its end" if turn_s == float("inf") else f"of {turn_s:.2f} s"
            doing = f"a turn {length} for {_described(state, device, batch, now_s, name_of)}"
        case Refuse(request, why):
            return f"refuse a request of {name_of(request.model)}: {why}"
        case _:
            return None
    others = [other for other in device.batches if other is not batch]
    others.sort(key=lambda other: _due_s(state, other))
    told = [_described(state, device, other, now_s, name_of) for other in others[:_OTHERS_MAX]]
    if len(others) > _OTHERS_MAX:
        told.append(f"{len(others) - _OTHERS_MAX} more later")
    return f"{doing}; {', '.join(told)}" if told else f"{doing}; nobody else has work"


def _described(
    state: State, device: Device, batch: Batch, now_s: float, name_of: Callable[[int], str]
) -> str:
    """Like ``small (2 requests, 1 to prefill, due in 0.41 s, 30% there)``."""
    count = len(batch.requests)
    details = [f"{count} request{'' if count == 1 else 's'}"]
    if fresh := sum(not request.prefilled for request in batch.requests):
        details.append(f"{fresh} to prefill")
    if batch.requests:
        due_s = _due_s(state, batch) - now_s
        details.append(f"due in {due_s:.2f} s" if due_s >= 0 else f"late by {-due_s:.2f} s")
    details.append(f"{device.resident.get(batch.model, 0.0):.0%} there")
    return f"{name_of(batch.model)} ({', '.join(details)})"


def _due_s(state: State, batch: Batch) -> float:
    goals = state.goals_for(batch.model)
    return min((goals.due_s(request) for request in batch.requests), default=float("inf"))
