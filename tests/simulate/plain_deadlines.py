"""What ``schedule.deadlines`` decides, written for the reader: the same in many more passes."""

from __future__ import annotations

from typing import NamedTuple

from gpupool.schedule.deadlines import (
    BUSY_MAX,
    GUARD_S,
    JOIN_BONUS,
    KV_FULL,
    LOOK_S,
    TURN_S_MIN,
)
from gpupool.schedule.rounds import TURN_S_MAX
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Drop,
    Join,
    Prefill,
    Refuse,
    Request,
    Rest,
    State,
    Switch,
)

LOAD_HORIZON_S = 10.0


class View(NamedTuple):
    """One device at one time."""

    state: State
    device: Device
    now_s: float

    def due_s(self, batch: Batch) -> float:
        """When the next token of any of its requests is due, less the guard."""
        goals = self.state.goals_for(batch.model)
        return min(goals.due_s(request) for request in batch.requests) - GUARD_S

    def load_s(self, batch: Batch) -> float:
        """Its missing weights, and the prefills that it waits for, together."""
        costs = self.state.costs[batch.model]
        weights_s = (1 - self.device.resident.get(batch.model, 0.0)) * costs.switch_s
        lengths = [r.context_tokens for r in batch.requests if not r.prefilled]
        return weights_s + costs.prefill(lengths) if lengths else weights_s

    def share(self, batch: Batch) -> float:
        """Of the time, what its decoding takes."""
        costs = self.state.costs[batch.model]
        tokens = sum(request.context_tokens for request in batch.requests)
        step_s = costs.step(tokens, len(batch.requests))
        return step_s / self.state.goals_for(batch.model).tbt_s

    @property
    def batches(self) -> list[Batch]:
        """First due first."""
        return sorted(self.device.batches, key=self.due_s)

    def others(self, besides: Batch | None) -> list[Batch]:
        """All but one, first due first."""
        return [batch for batch in self.batches if batch is not besides]

    def until_s(self, besides: Batch) -> float:
        """When the first of the others must have the device, if each is to be on time."""
        found, before_s = float("inf"), 0.0
        for batch in self.others(besides):
            before_s += self.load_s(batch) + TURN_S_MIN
            found = min(found, self.due_s(batch) - before_s)
        return found

    def least_s(self, batch: Batch) -> float:
        """The turn with which rounds of such turns keep up."""
        busy = sum(self.share(other) for other in self.batches)
        if busy >= 1:
            return TURN_S_MAX
        loads_s = sum(self.load_s(other) for other in self.batches)
        return min(TURN_S_MAX, max(TURN_S_MIN, loads_s * self.share(batch) / (1 - busy)))

    def choose(self, besides: Batch | None) -> Batch:
        """Of the late ones who ran longest ago, by weight, else who is due first."""
        others = self.others(besides)
        late = [b for b in others if self.due_s(b) - self.load_s(b) <= self.now_s]

        def age_s(batch: Batch) -> float:
            return (self.now_s - batch.ran_s) * self.state.weight_of(batch.model)

        return max(late, key=age_s) if late else others[0]

    def early(self, current: Batch) -> Batch | None:
        """A prefill before it is due."""
        fresh = [b for b in self.others(current) if any(not r.prefilled for r in b.requests)]
        if not fresh or sum(self.share(batch) for batch in self.batches) > BUSY_MAX:
            return None
        visit_s = self.load_s(fresh[0]) + self.least_s(fresh[0])
        return fresh[0] if self.until_s(fresh[0]) - self.now_s > visit_s else None

    def run(self, batch: Batch, turn_s: float | None) -> Action:
        """Prefill who fits and waits, else decode."""
        then = tuple(other.model for other in self.others(batch))
        room = self.state.costs[batch.model].kv_tokens_max
        fits: list[Request] = []
        for request in batch.requests:
            room -= request.context_tokens + 1
            if room < 0:
                break
            fits.append(request)
        fresh = tuple(request for request in fits if not request.prefilled)
        if not fresh and not batch.requests[0].prefilled:
            fresh = (batch.requests[0],)
        if fresh:
            return Prefill(self.device, batch, fresh, then, turn_s)
        return Decode(self.device, batch, turn_s, then)

    def next(self) -> Action:
        """What the device does."""
        device, now_s = self.device, self.now_s
        if not device.batches:
            return Rest(device)
        current = device.current if device.current in device.batches else None
        if current is not None and now_s < device.turn_ends_s:
            return self.run(current, None)
        if current is None:
            batch = self.choose(None)
        elif device.committed:
            batch = current
        elif self.until_s(current) <= now_s:
            batch = self.choose(current)
        else:
            batch = self.early(current) or current
        if device.model != batch.model:
            return Switch(device, batch, tuple(other.model for other in self.others(batch)))
        spare_s = min(self.until_s(batch) - now_s, LOOK_S)
        return self.run(batch, max(spare_s, self.least_s(batch)))


def decide(state: State, now_s: float) -> list[Action]:
    """See ``schedule.deadlines.decide``."""
    if state.arrived:
        dropped: list[Action] = []
        for device in state.devices:
            for batch in (*device.groups, *device.batches):
                for request in batch.requests:
                    late = state.patience_s and request.arrival_s < now_s - state.patience_s
                    if late and not request.prefilled:
                        dropped.append(Drop(request))
        return [place(state, state.arrived[0]), *dropped]
    return [View(state, state.ready[0], now_s).next()] if state.ready else []


def place(state: State, request: Request) -> Action:
    """On the device that would be the least busy."""
    costs = state.costs[request.model]
    if request.context_tokens > costs.kv_tokens_max:
        return Refuse(request, f"a prompt of {request.prompt_tokens} tokens fits on no device")

    def joined(device: Device) -> Batch | None:
        return next((b for b in device.batches if b.model == request.model), None)

    def load(device: Device) -> float:
        found, own = 0.0, joined(device)
        for batch in device.batches:
            size = len(batch.requests) + (batch is own)
            tokens = sum(r.context_tokens for r in batch.requests)
            tokens += request.context_tokens if batch is own else 0
            tbt_s = state.goals_for(batch.model).tbt_s
            found += state.costs[batch.model].step(tokens, size) / tbt_s
        if own is None:
            found += costs.step(request.context_tokens, 1) / state.goals_for(request.model).tbt_s
            missing = 1 - device.resident.get(request.model, 0.0)
            return found + missing * costs.switch_s / LOAD_HORIZON_S
        if own.context_tokens + request.context_tokens > KV_FULL * costs.kv_tokens_max:
            return found + 1.0
        return found - JOIN_BONUS

    device = min(state.devices, key=load)
    return Join(request, device, joined(device))
