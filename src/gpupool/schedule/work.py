"""What policies of requests decide about: requests, batches, devices, and what may be done.

A policy is ``decide(state, now_s)``: it reads the state of one group of devices, changes nothing,
and returns the next actions. Who calls it, live or simulated, applies them and asks again until
none come. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from gpupool.schedule.costs import Costs


@dataclass(frozen=True, slots=True)
class Goals:
    """When tokens are due: the first ``ttft_s`` after the request came, each later ``tbt_s`` on."""

    ttft_s: float = 10.0
    tbt_s: float = 0.1

    def due_s(self, request: Request) -> float:
        """When the next token of a request is due."""
        return request.arrival_s + self.ttft_s + request.produced_tokens * self.tbt_s


@dataclass(slots=True, eq=False)
class Request:
    """A request as far as a policy may know it: nothing of how long its answer will be."""

    key: int
    model: int
    arrival_s: float
    prompt_tokens: int
    produced_tokens: int = 0
    prefilled: bool = False
    """Its prefill has begun, or its KV is somewhere, on the device or on the host."""

    @property
    def context_tokens(self) -> int:
        """Tokens that its KV is for, or would be."""
        return self.prompt_tokens + self.produced_tokens


Sums: TypeAlias = tuple[float, int, Sequence[int]]
"""What a policy needs of the requests of a batch:

when the first of their next tokens is due; the tokens of all their contexts; the contexts of those
that wait for their prefill. A bare tuple, because a device with 100 models has 100 of them.
"""


@dataclass(slots=True, eq=False)
class Batch:
    """Requests of one model that wait, or run, together on one device."""

    model: int
    requests: list[Request] = field(default_factory=list)
    taken: int = 0
    """How many it has had in all."""
    ran_s: float = 0.0
    """When its last turn began; before the first, when it was made."""
    sums: Sums | None = None
    """What ``summed`` says of it, if whoever holds it knows that nothing changed since."""

    @property
    def context_tokens(self) -> int:
        """Tokens of all its requests."""
        return sum([r.prompt_tokens + r.produced_tokens for r in self.requests])

    def summed(self, goals: Goals) -> Sums:
        """One pass over its requests, without a call for each."""
        ttft_s, tbt_s = goals.ttft_s, goals.tbt_s
        due_s, tokens = float("inf"), 0
        fresh: list[int] = []
        for request in self.requests:
            produced = request.produced_tokens
            length = request.prompt_tokens + produced
            tokens += length
            next_s = request.arrival_s + ttft_s + produced * tbt_s
            if next_s < due_s:
                due_s = next_s
            if not request.prefilled:
                fresh.append(length)
        return due_s, tokens, fresh

    def fitting(self, kv_tokens_max: int) -> list[Request]:
        """Of the prefilled requests those whose KV fits at once, first come first; one at least."""
        found: list[Request] = []
        for request in self.requests:
            if request.prefilled:
                kv_tokens_max -= request.context_tokens + 1
                if kv_tokens_max < 0 and found:
                    break
                found.append(request)
        return found


@dataclass(slots=True, eq=False)
class Device:
    """One device, or several that work as one."""

    key: int
    prefills: bool = True
    decodes: bool = True
    groups: list[Batch] = field(default_factory=list)
    """Batches that wait for their prefill where that is done apart from decoding."""
    batches: list[Batch] = field(default_factory=list)
    turns: tuple[Turn, ...] = ()
    """What is left of its round."""
    model: int | None = None
    """Whose weights are ready to run."""
    current: Batch | None = None
    """Whose turn it is."""
    turn_ends_s: float = 0.0
    committed: bool = False
    """It switched for the batch whose turn it is, and that has not begun."""
    prefilling: bool = False
    """Its last step was a prefill."""
    used_s: float = 0.0
    """When it last finished a step."""
    unused: bool = True
    """It was never given anything."""
    resident: Mapping[int, float] = field(default_factory=dict)
    """Of which models it has what share of the weights, 0 to 1; those without any may be absent."""


@dataclass(slots=True)
class State:
    """One group of devices and the work for it."""

    devices: list[Device]
    costs: Mapping[int, Costs]
    goals: Goals = Goals()
    goals_of: Mapping[int, Goals] = field(default_factory=dict)
    """Those of single models, where they differ."""
    weights: Mapping[int, float] = field(default_factory=dict)
    """How much single models count, above 0, where not all can be on time; 1 unless said."""
    patience_s: float | None = None
    """A request without a token after so long is given up; None: never."""
    arrived: deque[Request] = field(default_factory=deque)
    """Requests without a place, in order of arrival."""
    prefilled: deque[Request] = field(default_factory=deque)
    """Requests that were prefilled on a device that does not decode, and have no place to go on."""
    ready: list[Device] = field(default_factory=list)
    """Devices with nothing under way that may have work."""

    def goals_for(self, model: int) -> Goals:
        """The goals of one model."""
        return self.goals_of.get(model, self.goals)

    def weight_of(self, model: int) -> float:
        """How much one model counts."""
        return self.weights.get(model, 1.0)


class Turn(NamedTuple):
    """A batch's share of a round."""

    batch: Batch
    turn_s: float


class Join(NamedTuple):
    """A request gets a place: in ``batch``, or in a new one when that is None."""

    request: Request
    device: Device
    batch: Batch | None
    to_prefill: bool = False
    """Its place is among the groups that wait for prefill, not among the batches."""


class Drop(NamedTuple):
    """A request is given up."""

    request: Request


class Refuse(NamedTuple):
    """A request is turned away at the door: it could never run."""

    request: Request
    why: str


class Round(NamedTuple):
    """A device begins a round of these turns."""

    device: Device
    turns: tuple[Turn, ...]


class Switch(NamedTuple):
    """The weights of a batch's model come in; others may stay, the first named longest."""

    device: Device
    batch: Batch
    keep: tuple[int, ...] = ()


class Prefill(NamedTuple):
    """Requests of a batch are prefilled, in one step."""

    device: Device
    batch: Batch
    requests: tuple[Request, ...]
    then: tuple[int, ...] = ()
    """The models to fetch meanwhile, in order."""
    turn_s: float | None = None
    """Length of the turn that begins with it; None: none begins."""


class Decode(NamedTuple):
    """A batch decodes until its turn ends, one of its requests ends, or one joins it."""

    device: Device
    batch: Batch
    turn_s: float | None
    """Length of the turn that begins; None: the turn that is under way goes on."""
    then: tuple[int, ...] = ()


class Rest(NamedTuple):
    """A device has nothing to do until something is given to it, or until ``until_s``."""

    device: Device
    until_s: float | None = None


Action: TypeAlias = Join | Drop | Refuse | Round | Switch | Prefill | Decode | Rest
