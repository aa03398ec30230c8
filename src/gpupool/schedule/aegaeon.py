"""Turns between tokens as Aegaeon has them (SOSP 2025): rounds, quotas, prefill in groups.

Devices prefill, decode, or do both; those that do both take a group of prefills before each turn.
"""

from __future__ import annotations

from collections.abc import Callable

from gpupool.schedule.patience import overdue
from gpupool.schedule.rounds import TURN_S_MAX, turn_lengths
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Join,
    Prefill,
    Request,
    Rest,
    Round,
    State,
    Switch,
    Turn,
)

GROUP_MAX = 8
"""A prefill group takes no more requests in all."""


def decide(state: State, now_s: float) -> list[Action]:
    """As in the paper: groups of up to eight go to the queue with the least work before it."""
    return _decide(state, now_s, GROUP_MAX, _work_s)


def decide_as_artifact(state: State, now_s: float) -> list[Action]:
    """As in its artifact: groups of any size go to the queue with the fewest groups."""
    return _decide(state, now_s, None, lambda _, device: len(device.groups))


def _decide(
    state: State,
    now_s: float,
    group_max: int | None,
    load_of: Callable[[State, Device], float],
) -> list[Action]:
    """Place the first request that has no place, else start the first device that can run.

    Groups are served in order and each takes a bounded number of requests, rounds give every batch
    its turn, and turns are at most ``TURN_S_MAX``: so everything is served.
    """
    if state.arrived:
        request = state.arrived[0]
        return [_to_prefill(state, request, group_max, load_of), *overdue(state, now_s)]
    if state.prefilled:
        return [_to_decode(state, state.prefilled[0])]
    return _next(state, state.ready[0], now_s) if state.ready else []


def _to_prefill(
    state: State,
    request: Request,
    group_max: int | None,
    load_of: Callable[[State, Device], float],
) -> Join:
    devices = [device for device in state.devices if device.prefills]
    room = state.costs[request.model].kv_tokens_max - request.context_tokens
    for device in devices:
        for group in device.groups:
            if (
                group.model == request.model
                and (group_max is None or group.taken < group_max)
                and group.context_tokens <= room
            ):
                return Join(request, device, group, to_prefill=True)
    return Join(request, min(devices, key=lambda d: load_of(state, d)), None, to_prefill=True)


def _work_s(state: State, device: Device) -> float:
    """Prefills and switches before whoever comes last."""
    work_s = 0.0
    model = device.model
    for group in device.groups:
        costs = state.costs[group.model]
        work_s += sum(costs.prefill((r.context_tokens,)) for r in group.requests)
        work_s += costs.switch_s if group.model != model else 0.0
        model = group.model
    return work_s


def _to_decode(state: State, request: Request) -> Join:
    devices = [device for device in state.devices if device.decodes]
    room = state.costs[request.model].kv_tokens_max - request.context_tokens
    for device in devices:
        for batch in device.batches:
            if batch.model == request.model and batch.context_tokens <= room:
                return Join(request, device, batch)
    return Join(request, min(devices, key=lambda d: len(d.batches)), None)


def _next(state: State, device: Device, now_s: float) -> list[Action]:
    current = device.current
    under_way = not device.prefilling and now_s < device.turn_ends_s
    if under_way and current is not None and current.requests:
        return [Decode(device, current, None, _then(device))]
    if device.groups and (not device.prefilling or device.current is device.groups[0]):
        return [_prefill(device, device.groups[0])]
    turns = tuple(turn for turn in device.turns if turn.batch.requests)
    if not turns:
        turns = _round(state, device)
        if turns:
            return [Round(device, turns)]
        return [_prefill(device, device.groups[0]) if device.groups else Rest(device)]
    batch, turn_s = turns[0]
    if device.model != batch.model:
        return [Switch(device, batch, _then(device))]
    return [Decode(device, batch, turn_s, _then(device))]


def _prefill(device: Device, group: Batch) -> Action:
    later = next((g.model for g in device.groups if g.model != group.model), None)
    then = () if later is None else (later,)
    if device.model != group.model:
        return Switch(device, group, then)
    return Prefill(device, group, (group.requests[0],), then)


def _then(device: Device) -> tuple[int, ...]:
    """The model after the turn that is under way or next."""
    running = device.current or (device.turns[0].batch if device.turns else None)
    models = [turn.batch.model for turn in device.turns]
    models += [batch.model for batch in device.batches]
    after = (m for m in models if running is None or m != running.model)
    return tuple(m for m in [next(after, None)] if m is not None)


def _round(state: State, device: Device) -> tuple[Turn, ...]:
    """A turn for every batch, those of one model next to each other."""
    order: dict[int, list[Batch]] = {}
    for batch in device.batches:
        order.setdefault(batch.model, []).append(batch)
    batches = [batch for of_model in order.values() for batch in of_model]
    if not batches:
        return ()
    steps_s = [state.costs[b.model].step(b.context_tokens, len(b.requests)) for b in batches]
    tbt_s = [state.goals_for(b.model).tbt_s for b in batches]
    switches_s = sum(state.costs[model].switch_s for model in order)
    turns_s, _ = turn_lengths(steps_s, tbt_s, switches_s, TURN_S_MAX)
    return tuple(Turn(batch, turn_s) for batch, turn_s in zip(batches, turns_s, strict=True))
