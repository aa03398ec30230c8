"""The event loop: arrivals and ends of turns, and a policy that is asked what to do next."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gpupool.schedule.patience import PAST_S
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
    Round,
    State,
    Switch,
)
from gpupool.simulate.decoding import Steps, runs_of
from gpupool.simulate.loading import Loader
from gpupool.simulate.tally import Tally


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as the simulator calls it."""

    decide: Callable[[State, float], list[Action]]
    replans: bool = False
    """A turn is decided anew when a request comes to another batch of its device."""
    gives_up_in_time: bool = True
    """Requests are given up when their time is up, not only when the next one comes."""


@dataclass(slots=True)
class _Work:
    """What a device does now."""

    batch: Batch
    members: list[Request]
    began_s: float
    end_s: float
    steps: Steps | None = None
    then: tuple[int, ...] = ()


class Engine:
    """Runs one group of devices to the end of its requests; ``tallies`` say how it went.

    ``output_tokens`` has the length of each answer by the key of its request, which no policy sees.
    """

    def __init__(
        self,
        state: State,
        policy: Policy,
        loader: Loader,
        output_tokens: Sequence[int],
        *,
        grain_s: float = 0.0,
    ) -> None:
        self.state = state
        self.tallies: dict[int, Tally] = {}
        self.gaps_ms: Counter[int] = Counter()
        self.switches = 0
        self.busy_s = 0.0
        self.switching_s = 0.0
        self.now_s = 0.0
        self._policy = policy
        self._loader = loader
        self._output_tokens = output_tokens
        self._grain_s = grain_s
        self._work: dict[int, _Work] = {}
        self._events: list[tuple[float, int, Request | Device | None]] = []
        self._count = 0

    def run(self, requests: Iterable[Request], progress: Callable[[int], None] | None) -> None:
        """Serve the requests, which come in order of arrival."""
        for request in requests:
            self._push(request.arrival_s, request)
        done = 0
        while self._events:
            self.now_s, _, subject = heapq.heappop(self._events)
            if isinstance(subject, Request):
                self._arrive(subject)
                done += 1
                if progress is not None and done % 100 == 0:
                    progress(done)
            elif subject is not None:
                self._device_is_due(subject)
            while actions := self._policy.decide(self.state, self.now_s):
                for action in actions:
                    self._apply(action)
        if progress is not None:
            progress(done)

    def _push(self, at_s: float, subject: Request | Device | None) -> None:
        """At that time something happens; None: the policy is asked, and nothing else does."""
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, subject))

    def _arrive(self, request: Request) -> None:
        goals = self.state.goals_for(request.model)
        tally = Tally(request.arrival_s, self._output_tokens[request.key], goals)
        self.tallies[request.key] = tally
        self.state.arrived.append(request)
        if self.state.patience_s is not None and self._policy.gives_up_in_time:
            self._push(self.now_s + self.state.patience_s + PAST_S, None)
        for device in self.state.devices:
            work = self._work.get(device.key)
            if work is not None and work.steps is not None:
                device.used_s = work.steps.last_done_s(self.now_s) or device.used_s

    def _device_is_due(self, device: Device) -> None:
        work = self._work.get(device.key)
        if work is None:
            self._make_ready(device)
        elif work.end_s == self.now_s:  # else it was cut since, and this event is out of date
            del self._work[device.key]
            if work.members:
                self._finish(device, work)
            self._make_ready(device)

    def _make_ready(self, device: Device) -> None:
        if device not in self.state.ready:
            self.state.ready.append(device)

    def _finish(self, device: Device, work: _Work) -> None:
        """A prefill, or the steps of a turn, are done."""
        busy_s = self.now_s - work.began_s
        self.busy_s += busy_s
        device.used_s = self.now_s
        steps, made_tokens = work.steps, 0
        for request in work.members:
            tally = self.tallies[request.key]
            if steps is None:
                made_tokens += request.context_tokens + 1
                request.produced_tokens += 1
                tally.add_first(self.now_s, self.gaps_ms)
            else:
                made_tokens += steps.count
                request.produced_tokens += steps.count
                for run in steps.runs:
                    tally.add(run, self.gaps_ms)
            if request.produced_tokens >= tally.output_tokens:
                if request in work.batch.requests:
                    work.batch.requests.remove(request)
            elif request not in work.batch.requests:  # it was of a group: it decodes elsewhere
                self.state.prefilled.append(request)
        self._loader.computed(device, work.batch, busy_s, made_tokens, work.then)
        self._tidy(device, work.batch)

    def _tidy(self, device: Device, batch: Batch) -> None:
        if not batch.requests:
            for of in (device.batches, device.groups):
                if batch in of:
                    of.remove(batch)
            self._loader.left(device, batch)

    def _apply(self, action: Action) -> None:
        match action:
            case Join():
                self._join(action)
            case Drop(request):
                self._drop(request)
            case Refuse(request, why):
                raise AssertionError(f"request {request.key} was cut to what fits: {why}")
            case Round(device, turns):
                device.turns = turns
            case Switch(device, batch, keep):
                took_s = self._cut(self._loader.switch_s(device, batch, keep))
                device.model, device.unused = batch.model, False
                device.current, device.committed = batch, True
                device.turn_ends_s = self.now_s
                self.switches += 1
                self.switching_s += took_s
                self._start(device, _Work(batch, [], self.now_s, self.now_s + took_s))
            case Prefill():
                self._prefill(action)
            case Decode():
                self._decode(action)
            case Rest(device, until_s):
                self.state.ready.remove(device)
                if until_s is not None:
                    self._push(until_s, device)

    def _join(self, action: Join) -> None:
        request, device, batch, to_prefill = action
        waiting = self.state.prefilled if request.prefilled else self.state.arrived
        waiting.remove(request)
        if batch is None:
            batch = Batch(request.model, ran_s=self.now_s)
            (device.groups if to_prefill else device.batches).append(batch)
        batch.requests.append(request)
        batch.taken += 1
        device.unused = False
        work = self._work.get(device.key)
        if work is None:
            self._make_ready(device)
        elif (
            work.steps is not None
            and (work.batch is batch or self._policy.replans)
            and work.steps.cut(self.now_s)
        ):  # the policy is asked after the step that is under way
            work.end_s = work.steps.end_s
            self._push(work.end_s, device)

    def _drop(self, request: Request) -> None:
        self.tallies[request.key].dropped = True
        if request in self.state.arrived:
            self.state.arrived.remove(request)
            return
        for device in self.state.devices:
            for batch in (*device.groups, *device.batches):
                if request in batch.requests:
                    batch.requests.remove(request)
                    self._tidy(device, batch)
                    return

    def _start(self, device: Device, work: _Work) -> None:
        self._work[device.key] = work
        if device in self.state.ready:
            self.state.ready.remove(device)
        self._push(work.end_s, device)

    def _prefill(self, action: Prefill) -> None:
        device, batch, requests, then, turn_s = action
        lengths = [request.context_tokens for request in requests]
        took_s = self._cut(self.state.costs[batch.model].prefill(lengths))
        more_tokens = sum(lengths) + len(lengths)
        began_s = self.now_s + self._loader.kv_s(
            device, batch, more_tokens=more_tokens, new_turn=False
        )
        for request in requests:
            request.prefilled = True
        if batch in device.groups:
            for request in requests:
                batch.requests.remove(request)
            if not batch.requests:
                device.groups.remove(batch)
        device.current, device.prefilling = batch, True
        if turn_s is not None:
            self._begin_turn(device, batch, began_s + turn_s)
        self._start(device, _Work(batch, list(requests), began_s, began_s + took_s, then=then))

    def _decode(self, action: Decode) -> None:
        device, batch, turn_s, then = action
        costs = self.state.costs[batch.model]
        members = batch.fitting(costs.kv_tokens_max)
        tokens = sum(request.context_tokens for request in members)
        count = min(self._output_tokens[r.key] - r.produced_tokens for r in members)
        count = min(count, max(1, (costs.kv_tokens_max - tokens) // len(members)))
        step_s = costs.step(tokens, len(members))
        left_s = device.turn_ends_s - self.now_s if turn_s is None else turn_s
        if left_s < count * step_s:
            count = min(count, int(left_s / step_s) + 1)
        start_s = self.now_s + self._loader.kv_s(
            device, batch, more_tokens=count * len(members), new_turn=turn_s is not None
        )
        if turn_s is not None:
            if device.turns and device.turns[0].batch is batch:
                device.turns = device.turns[1:]
            self._begin_turn(device, batch, start_s + turn_s)
        device.current, device.prefilling = batch, False
        growth_s = costs.step_s[1] * len(members)
        steps = Steps(runs_of(start_s, step_s, growth_s, count, self._grain_s))
        steps.cut(device.turn_ends_s)
        work = _Work(batch, members, start_s, steps.end_s, steps, then=then)
        self._start(device, work)

    def _begin_turn(self, device: Device, batch: Batch, end_s: float) -> None:
        device.turn_ends_s, device.committed = end_s, False
        batch.ran_s = self.now_s

    def _cut(self, took_s: float) -> float:
        if self._grain_s <= 0:
            return took_s
        return int(took_s / self._grain_s + 1e-9) * self._grain_s
