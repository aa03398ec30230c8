"""Turns by deadline: gpupool's own policy for requests.

Each device prefills and decodes. A model runs for as long as the tokens that others have ahead
allow, so it switches as rarely as their deadlines let it, and what runs next is fetched meanwhile.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TypeAlias

from gpupool.schedule.patience import overdue
from gpupool.schedule.rounds import TURN_S_MAX
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Goals,
    Join,
    Prefill,
    Refuse,
    Request,
    Rest,
    State,
    Switch,
)

TURN_S_MIN = 0.1
"""No busy model is interrupted sooner."""
GUARD_S = 0.3
"""Be so early: steps are not interrupted, and estimates are not exact."""
LOOK_S = 0.3
"""A turn that could be longer is looked at anew after so long: others may have come."""
BUSY_MAX = 0.9
"""Where decoding takes more of the time than that, nobody is prefilled before it is due."""
JOIN_BONUS = 0.5
"""A second device for a model is worth it only where it is so much less busy."""
KV_FULL = 0.5
"""With more of a device's room for KV in use, a model's next request goes elsewhere: KV grows."""
_LOAD_HORIZON_S = 10.0
"""What a load of weights delays is spread over so much time when devices are compared."""


_Need: TypeAlias = tuple[Batch, float, float, bool, float]
"""When a batch must run, and what it takes to begin:

batch; due_s; load_s, of the weights that are missing and the prefills; whether some of its requests
wait for their prefill; share, what its decoding takes of the time if it is to be on time. A bare
tuple, because a device with 100 models makes 100 of them at each decision.
"""
_DUE_S = itemgetter(1)
_NEVER_S = float("inf")


def decide(state: State, now_s: float) -> list[Action]:
    """Place the first request that has no place, else start the first device that can run."""
    if state.arrived:
        request = state.arrived[0]
        place = _place(state, request)
        return [place, *overdue(state, now_s)]
    return [_next(state, state.ready[0], now_s)] if state.ready else []


def wait_s_max(
    goals: Goals,
    models: int,
    *,
    switch_s: float,
    step_s: float,
    ahead_s: float,
    weight_ratio: float = 1.0,
) -> float:
    """The longest that a request waits for its prefill on a device with so many models.

    From ``ttft_s`` on its batch is late, and of those that are late who ran longest ago is next: so
    at most one turn of each other model comes before it, each a load of weights and KV, at most
    ``TURN_S_MAX``, and the step that is under way as it ends, which takes at most ``step_s``. Those
    of its own batch before it, when there was no room for its KV beside theirs, take ``ahead_s``.

    Where no other model on the device has more than ``weight_ratio`` times its weight (at least 1),
    all this takes at most so many times as long: when another is preferred to a batch that has been
    late for t, the last turn of the other began t / ratio ago or longer. So of the time it is late
    the last part, 1 / ratio of it, has at most one turn of each.
    """
    turns_s = (models + 1) * (switch_s + TURN_S_MAX + step_s)
    return goals.ttft_s + weight_ratio * turns_s + ahead_s


def _place(state: State, request: Request) -> Action:
    """With others of its model, or where the least work is: work is what fraction is busy."""
    costs = state.costs[request.model]
    if request.context_tokens > costs.kv_tokens_max:
        return Refuse(request, f"a prompt of {request.prompt_tokens} tokens fits on no device")
    if len(state.devices) == 1:
        (device,) = state.devices
        batches = (batch for batch in device.batches if batch.model == request.model)
        return Join(request, device, next(batches, None))
    tbt_s = state.goals_for(request.model).tbt_s
    best: tuple[float, Device, Batch | None] | None = None
    for device in state.devices:
        joined = next((b for b in device.batches if b.model == request.model), None)
        load = 0.0
        for batch in device.batches:
            size, tokens = len(batch.requests), batch.context_tokens
            if batch is joined:
                size, tokens = size + 1, tokens + request.context_tokens
            step_s = state.costs[batch.model].step(tokens, size)
            load += step_s / state.goals_for(batch.model).tbt_s
        if joined is None:
            load += costs.step(request.context_tokens, 1) / tbt_s
            load += costs.load_s(device.resident.get(request.model, 0.0)) / _LOAD_HORIZON_S
        elif joined.context_tokens + request.context_tokens > KV_FULL * costs.kv_tokens_max:
            load += 1.0
        else:
            load -= JOIN_BONUS
        if best is None or load < best[0]:
            best = load, device, joined
    assert best is not None
    return Join(request, best[1], best[2])


def _next(state: State, device: Device, now_s: float) -> Action:
    if not device.batches:
        return Rest(device)
    needs = _needs(state, device)
    current = device.current if device.current in device.batches else None
    if current is not None and now_s < device.turn_ends_s:
        return _run(state, device, current, None, needs)
    busy = sum([share for _, _, _, _, share in needs])
    batch = current
    if current is None or (not device.committed and _until_s(needs, current) <= now_s):
        batch = _choose(state, needs, current, now_s)
    elif not device.committed:
        batch = _early(current, needs, busy, now_s) or current
    assert batch is not None
    if device.model != batch.model:
        return Switch(device, batch, _models(needs, batch))
    spare_s = min(_until_s(needs, batch) - now_s, LOOK_S)
    return _run(state, device, batch, max(spare_s, _least_s(batch, needs, busy)), needs)


def _early(current: Batch, needs: list[_Need], busy: float, now_s: float) -> Batch | None:
    """Who waits longest for a prefill, if a visit makes nobody late.

    Only where there is time to spare: where there is not, requests that wait for each other share
    their steps.
    """
    if busy > BUSY_MAX:
        return None
    for batch, _, load_s, fresh, _ in needs:
        if fresh and batch is not current:
            visit_s = load_s + _least_s(batch, needs, busy)
            return batch if _until_s(needs, batch) - now_s > visit_s else None
    return None


def _run(
    state: State, device: Device, batch: Batch, turn_s: float | None, needs: list[_Need]
) -> Action:
    """Prefill whoever of the batch waits and fits, else decode."""
    then = _models(needs, batch)
    room = state.costs[batch.model].kv_tokens_max
    fresh: list[Request] = []
    for request in batch.requests:
        room -= request.context_tokens + 1
        if room < 0:
            break
        if not request.prefilled:
            fresh.append(request)
    if fresh or not batch.requests[0].prefilled:
        return Prefill(device, batch, tuple(fresh) or (batch.requests[0],), then, turn_s)
    return Decode(device, batch, turn_s, then)


def _models(needs: list[_Need], besides: Batch) -> tuple[int, ...]:
    return tuple([batch.model for batch, _, _, _, _ in needs if batch is not besides])


def _needs(state: State, device: Device) -> list[_Need]:
    """Of every batch, first due first: one pass over the requests of those not summed yet."""
    needs: list[_Need] = []
    costs_of, goals_of, goals_of_all = state.costs, state.goals_of, state.goals
    resident, add = device.resident, needs.append
    for batch in device.batches:
        model = batch.model
        costs, goals = costs_of[model], goals_of.get(model, goals_of_all)
        due_s, tokens, fresh = batch.sums or batch.summed(goals)
        # Costs.load_s and Costs.step, without a call for each batch.
        fixed_s = costs.switch_fixed_s
        load_s = fixed_s + (1 - resident.get(model, 0.0)) * (costs.switch_s - fixed_s)
        waits = False
        if fresh:
            load_s += costs.prefill(fresh)
            waits = True
        step_s, per_token_s, per_request_s = costs.step_s
        step_s = step_s + per_token_s * tokens + per_request_s * len(batch.requests)
        add((batch, due_s - GUARD_S, load_s, waits, step_s / goals.tbt_s))
    needs.sort(key=_DUE_S)
    return needs


def _until_s(needs: list[_Need], besides: Batch | None) -> float:
    """When the first of the others must get its turn so that each of them can be on time."""
    until_s, load_s = float("inf"), 0.0
    for batch, due_s, need_s, _, _ in needs:
        if batch is not besides:
            load_s += need_s + TURN_S_MIN
            latest_s = due_s - load_s
            if latest_s < until_s:
                until_s = latest_s
    return until_s


def _choose(state: State, needs: list[_Need], besides: Batch | None, now_s: float) -> Batch:
    """Of the others that are late whoever's turn is longest ago, by weight, else who is due first.

    With a weight of 2 a second counts as two.
    """
    first: Batch | None = None
    late: Batch | None = None
    age_max_s = -_NEVER_S
    for batch, due_s, load_s, _, _ in needs:
        if batch is besides:
            continue
        if first is None:
            first = batch
        if due_s - load_s <= now_s:
            age_s = (now_s - batch.ran_s) * state.weight_of(batch.model)
            if age_s > age_max_s:
                late, age_max_s = batch, age_s
    chosen = first if late is None else late
    assert chosen is not None
    return chosen


def _least_s(batch: Batch, needs: list[_Need], busy: float) -> float:
    """The turn that a batch needs so that rounds of such turns keep up, at most TURN_S_MAX.

    In a round of C seconds it must decode for its share of C, and C less all shares must do for the
    loads; that is the paper's formula for alpha = 1.
    """
    if busy >= 1:
        return TURN_S_MAX
    own = next(share for other, _, _, _, share in needs if other is batch)
    loads_s = sum([load_s for _, _, load_s, _, _ in needs])
    return min(TURN_S_MAX, max(TURN_S_MIN, loads_s * own / (1 - busy)))
