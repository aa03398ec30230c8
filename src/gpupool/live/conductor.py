"""One device's policy: what is known becomes its state, and what it decides becomes an order.

The policy says whose turn it is; the arbiter moves the pages. So that it does as the policy says,
each lease gets a rank, and a time before which its model is not made to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Protocol

from gpupool.arbiter.leases import Lease
from gpupool.live.measured import Measured
from gpupool.live.notes import Notes
from gpupool.live.orders import Orders
from gpupool.live.places import Places
from gpupool.live.requests import Requests
from gpupool.live.wants import OUT_S, Wants
from gpupool.schedule import deadlines, fcfs
from gpupool.schedule.patience import overdue_at_s, patient
from gpupool.schedule.recording import Decided
from gpupool.schedule.turns import Residency
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Drop,
    Goals,
    Join,
    Prefill,
    Refuse,
    Request,
    Rest,
    Round,
    State,
    Switch,
)

Decide = Callable[[State, float], list[Action]]
POLICIES: Mapping[str, Decide] = {
    "deadlines": patient(deadlines.decide),
    "fcfs": patient(fcfs.decide),
}


class Leases(Protocol):
    """Of the arbiter what a policy orders."""

    def lease(self, key: int) -> Lease:
        """The standing of one model."""


class Conductor:
    """Drives a policy with what happens, and orders the leases accordingly."""

    def __init__(
        self,
        leases: Leases,
        policy: str,
        goals: Goals,
        *,
        turn_s: float,
        silent_s: float,
        patience_s: float | None = None,
        give_up: Callable[[str, Request], None] = lambda *_: None,
        record: Callable[[Decided], None] | None = None,
    ) -> None:
        """No models yet. Work that nobody announced is due ``turn_s`` after it asked for memory.

        A model of which nothing was heard for ``silent_s`` may be made to leave in the midst of a
        turn, or before it has come. A request whose model had no turn for ``patience_s`` since it
        came is given up, and ``give_up`` is told of it and of the model's name.
        """
        self.requests = Requests()
        self.measured = Measured()
        self._leases = leases
        self._decide = POLICIES[policy]
        self._names: dict[int, str] = {}
        self._keys: dict[str, int] = {}
        self._there: set[int] = set()
        """Models that have arrived."""
        self._again: set[int] = set()
        """Models to be looked at although nothing about them changed."""
        self._target: int | None = None
        """The model that the device switches to."""
        self._next: tuple[int, ...] = ()
        """The others in the order in which they are needed."""
        self._resident: dict[int, float] = {}
        self._device = Device(0, resident=self._resident)
        self._goals_of: dict[int, Goals] = {}
        self._weights: dict[int, float] = {}
        self.state = State(
            [self._device], self.measured.costs, goals, self._goals_of, self._weights, patience_s
        )
        self._give_up = give_up
        self._places = Places(self.state, self._device)
        self._orders = Orders(silent_s, self._places.newest_s)
        self._wants = Wants(self.requests, turn_s, lambda key: self.state.goals_for(key).ttft_s)
        self._rest_until_s: float | None = None
        self._notes = Notes(self._names, record)

    def add(self, key: int, name: str) -> None:
        """A model has joined."""
        self._names[key], self._keys[name] = name, key
        self.measured.add(key)

    def forget(self, key: int) -> None:
        """A model has left, or its engine has ended."""
        name = self._names.pop(key)
        del self._keys[name]
        self.requests.gone(name)
        if self._places.keep_only(key, ()):
            self._wake()
        self._wants.forget(key)
        self._resident.pop(key, None)
        self._goals_of.pop(key, None)
        self._weights.pop(key, None)
        self._there.discard(key)
        self._again.discard(key)
        self._orders.forget(key)
        self._left(key)
        self.measured.forget(key)

    def set_goals(
        self, key: int, ttft_s: float | None, tbt_s: float | None, weight: float = 1.0
    ) -> None:
        """Goals of a model's own, None as for all, and what it counts where not all can be met."""
        of_all = self.state.goals
        self._goals_of[key] = Goals(
            of_all.ttft_s if ttft_s is None else ttft_s, of_all.tbt_s if tbt_s is None else tbt_s
        )
        self._weights[key] = weight
        for batch in self._device.batches:
            batch.sums = None  # which are by the goals

    def tells(self, key: int, now_s: float) -> None:
        """A model's engine tells of its requests: where it has none, there are none."""
        self._wants.tells(key)
        self._orders.heard(key, now_s)

    def arrived(self, key: int, now_s: float) -> None:
        """A model that was granted its pages has come."""
        self._there.add(key)
        self._again.add(key)
        self._orders.heard(key, now_s)
        if self._target == key:
            self._target = None
            self._wake()

    def why(self, now_s: float) -> list[tuple[float, str]]:
        """What was decided last, how many seconds ago and why, newest first."""
        return self._notes.why(now_s)

    def look(self, now_s: float) -> float | None:
        """Have the policy decide as long as it has something to, order the leases, and say when to
        look again at the latest.
        """
        leases = list(map(self._leases.lease, self._names))
        hidden_at_s = self._follow(leases, now_s)
        ends_s = self._device.turn_ends_s
        if self._target is None and ends_s <= now_s and self._device.current is not None:
            self._wake()
        if self._rest_until_s is not None and self._rest_until_s <= now_s:
            self._wake()
        while actions := self._decided(now_s):
            self._notes.note(self.state, now_s, actions)
            for action in actions:
                self._apply(action, now_s)
        running = self._target is None and self._device.current is not None
        self._orders.give(leases, self._line(), self._target, now_s)
        times_s = [self._device.turn_ends_s] if running else []
        others_s = hidden_at_s, self._rest_until_s, overdue_at_s(self.state)
        times_s += [at_s for at_s in others_s if at_s is not None]
        return min((at_s for at_s in times_s if now_s < at_s < inf), default=None)

    def _decided(self, now_s: float) -> list[Action]:
        if self.state.ready:
            self._sum_up()
        return self._decide(self.state, now_s)

    # What is known becomes state.

    def _sum_up(self) -> None:
        """Sum up those batches again that are not as they were: of a hundred models mostly one."""
        for name in self.requests.went_on:
            if name in self._keys:
                self._places.went_on(self._keys[name])
        for batch in self._device.batches:
            if batch.sums is None:
                batch.sums = batch.summed(self.state.goals_for(batch.model))
        self.requests.went_on.clear()

    def _follow(self, leases: Sequence[Lease], now_s: float) -> float | None:
        """Tell the policy of requests that came and went; when an engine is late, if one may be."""
        late_s: list[float] = []
        for key, name, lease in self._wants.changed(self._names, leases, self._again.copy()):
            self._again.discard(key)
            if lease.state in (Residency.OUT, Residency.WAITING):
                self._there.discard(key)  # one that is leaving may yet stay
            self._resident[key] = lease.held / lease.pages if lease.pages else 0.0
            known = self._places.any_of(key)
            interrupted = known and lease.state is Residency.OUT
            wanted = self._wants.now(key, name, lease, now_s, known=known)
            if wanted and interrupted:
                self._again.add(key)  # it may come too late, which only the time tells
                late_s.append(lease.since_s + OUT_S)
            if self._places.keep_only(key, wanted):
                self._wake()
        if self._target is not None and not self._places.any_of(self._target):
            self._left(self._target)
        model = self._device.model
        if model is not None and self._target is None and model not in self._there:
            self._left(model)
        return min(late_s, default=None)

    def _left(self, key: int) -> None:
        """A model is not what the device runs, or is about to, any more."""
        if key in (self._target, self._device.model):
            self._target = self._device.model = None
            self._device.turn_ends_s = 0.0
            self._wake()

    def _wake(self) -> None:
        """Ask the policy what the device does, unless it is about to switch."""
        if self._target is None and self._device not in self.state.ready:
            self.state.ready.append(self._device)

    # Actions become orders.

    def _apply(self, action: Action, now_s: float) -> None:
        device = self._device
        match action:
            case Join(request, _, batch, _):
                self._places.put(request, batch, now_s)
                device.unused = False
                self._wake()
            case Drop(request):
                self._places.give_up(request)
                self._give_up(self._names[request.model], request)
            case Switch(_, batch, keep):
                device.model, device.unused = batch.model, False
                device.current, device.committed = batch, True
                device.turn_ends_s = now_s
                self._next = keep
                if batch.model not in self._there:
                    self._target = batch.model
                    self.state.ready.remove(device)
            case Prefill(_, batch, requests, then, turn_s):
                for request in requests:
                    request.prefilled = True
                batch.sums = None
                self._begin(batch, then, turn_s, now_s, prefilling=True)
            case Decode(_, batch, turn_s, then):
                self._begin(batch, then, turn_s, now_s, prefilling=False)
            case Rest(_, until_s):
                self.state.ready.remove(device)
                device.current = None
                self._rest_until_s = until_s
            case Refuse() | Round():
                raise NotImplementedError("no policy that is driven live refuses, or has rounds")

    def _begin(
        self,
        batch: Batch,
        then: tuple[int, ...],
        turn_s: float | None,
        now_s: float,
        *,
        prefilling: bool,
    ) -> None:
        device = self._device
        device.current, device.prefilling = batch, prefilling
        device.used_s = now_s
        self._next, self._rest_until_s = then, None
        if turn_s is not None:
            device.turn_ends_s, device.committed = now_s + turn_s, False
            batch.ran_s = now_s
        self.state.ready.remove(device)

    def _line(self) -> tuple[int, ...]:
        """Whose turn it is, or will be, then who is needed next."""
        if self._target is not None:
            return (self._target, *self._next)
        current = self._device.current
        return self._next if current is None else (current.model, *self._next)
