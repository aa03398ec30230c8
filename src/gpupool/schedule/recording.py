"""States and decisions as plain values, so that what was decided can be decided again.

A recording has one decision a line, as JSON: the time, the state before it, and the actions.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple
from types import MappingProxyType
from typing import Any, NamedTuple

from gpupool.schedule.costs import Costs
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Drop,
    Goals,
    Prefill,
    Request,
    Rest,
    State,
    Switch,
    Turn,
)

_INF = float("inf")


class Decided(NamedTuple):
    """One decision: when, about what, and the actions, as plain values."""

    now_s: float
    state: dict[str, Any]
    actions: list[Any]
    names: tuple[tuple[int, str], ...] = ()
    """What models are called, where that is known."""


def encode(
    state: State,
    now_s: float,
    actions: Iterable[Action],
    names: Mapping[int, str] = MappingProxyType({}),
) -> Decided:
    """A decision, before its actions are applied."""
    requests = _requests(state)
    batches = _batches(state)
    places = {id(request): place for place, request in enumerate(requests)}
    numbers = {id(batch): number for number, batch in enumerate(batches)}

    def batch_of(batch: Batch) -> list[Any]:
        return [batch.model, [places[id(r)] for r in batch.requests], batch.taken, batch.ran_s]

    def device_of(device: Device) -> dict[str, Any]:
        return {
            "key": device.key,
            "prefills": device.prefills,
            "decodes": device.decodes,
            "groups": [numbers[id(batch)] for batch in device.groups],
            "batches": [numbers[id(batch)] for batch in device.batches],
            "turns": [[numbers[id(turn.batch)], _finite(turn.turn_s)] for turn in device.turns],
            "model": device.model,
            "current": None if device.current is None else numbers[id(device.current)],
            "turn_ends_s": _finite(device.turn_ends_s),
            "committed": device.committed,
            "prefilling": device.prefilling,
            "used_s": device.used_s,
            "unused": device.unused,
            "resident": [[model, share] for model, share in device.resident.items()],
        }

    plain = {
        "requests": [
            [r.key, r.model, r.arrival_s, r.prompt_tokens, r.produced_tokens, r.prefilled]
            for r in requests
        ],
        "batches": [batch_of(batch) for batch in batches],
        "devices": [device_of(device) for device in state.devices],
        "costs": [[model, _costs_of(costs)] for model, costs in state.costs.items()],
        "goals": list(astuple(state.goals)),
        "goals_of": [[model, list(astuple(goals))] for model, goals in state.goals_of.items()],
        "weights": [[model, weight] for model, weight in state.weights.items()],
        "patience_s": state.patience_s,
        "arrived": [places[id(request)] for request in state.arrived],
        "prefilled": [places[id(request)] for request in state.prefilled],
        "ready": [state.devices.index(device) for device in state.ready],
    }
    # Lists and no tuples, as they come back from a file.
    told = [_action(action, places, numbers) for action in actions]
    return Decided(now_s, plain, told, tuple(names.items()))


def decode(plain: dict[str, Any]) -> State:
    """The state that was encoded."""
    requests = [Request(*fields) for fields in plain["requests"]]
    batches = [
        Batch(model, [requests[place] for place in places], taken, ran_s)
        for model, places, taken, ran_s in plain["batches"]
    ]
    devices = [_device(of, batches) for of in plain["devices"]]
    return State(
        devices,
        {model: _costs(fields) for model, fields in plain["costs"]},
        Goals(*plain["goals"]),
        {model: Goals(*fields) for model, fields in plain["goals_of"]},
        weights=dict(plain["weights"]),
        patience_s=plain["patience_s"],
        arrived=deque(requests[place] for place in plain["arrived"]),
        prefilled=deque(requests[place] for place in plain["prefilled"]),
        ready=[devices[place] for place in plain["ready"]],
    )


def decode_actions(state: State, decided: Decided) -> list[Action]:
    """The actions that were encoded, about what ``decode`` made of the same decision.

    Only those of devices that switch, run or rest, and requests that are given up, which say what
    happens when.
    """
    batches, requests = _batches(state), _requests(state)
    devices = {device.key: device for device in state.devices}
    kinds: dict[str, Callable[..., Action]] = {
        "Switch": lambda device, batch, keep: Switch(devices[device], batches[batch], tuple(keep)),
        "Prefill": lambda device, batch, _, then, turn_s: Prefill(
            devices[device], batches[batch], (), tuple(then), _length(turn_s)
        ),
        "Decode": lambda device, batch, turn_s, then: Decode(
            devices[device], batches[batch], _length(turn_s), tuple(then)
        ),
        "Rest": lambda device, until_s: Rest(devices[device], until_s),
        "Drop": lambda request: Drop(requests[request]),
    }
    return [kinds[kind](*fields) for kind, *fields in decided.actions if kind in kinds]


def differing(
    recording: Iterable[Decided], decide: Callable[[State, float], list[Action]]
) -> Iterator[tuple[int, Decided, list[Any]]]:
    """Decide all of it again: which decisions, counted from 0, come out otherwise, and how."""
    for number, decided in enumerate(recording):
        state = decode(decided.state)
        again = encode(state, decided.now_s, decide(state, decided.now_s))
        if again.actions != decided.actions:
            yield number, decided, again.actions


def to_line(policy: str, decided: Decided) -> str:
    """A decision as a line of a recording."""
    fields = {"policy": policy, **decided._asdict()}
    return json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n"


def from_line(line: str) -> tuple[str, Decided]:
    """The policy that decided and its decision. Raises ValueError or KeyError for no such line."""
    fields = json.loads(line)
    names = tuple((int(key), str(name)) for key, name in fields["names"])
    return fields["policy"], Decided(fields["now_s"], fields["state"], fields["actions"], names)


def _requests(state: State) -> list[Request]:
    found = [*state.arrived, *state.prefilled]
    for batch in _batches(state):
        found += batch.requests
    return list({id(request): request for request in found}.values())


def _batches(state: State) -> list[Batch]:
    found: list[Batch] = []
    for device in state.devices:
        found += [*device.groups, *device.batches, *(turn.batch for turn in device.turns)]
        found += [] if device.current is None else [device.current]
    return list({id(batch): batch for batch in found}.values())


def _device(of: dict[str, Any], batches: list[Batch]) -> Device:
    return Device(
        of["key"],
        of["prefills"],
        of["decodes"],
        [batches[number] for number in of["groups"]],
        [batches[number] for number in of["batches"]],
        tuple(Turn(batches[number], float(turn_s)) for number, turn_s in of["turns"]),
        of["model"],
        None if of["current"] is None else batches[of["current"]],
        float(of["turn_ends_s"]),
        of["committed"],
        of["prefilling"],
        of["used_s"],
        of["unused"],
        dict(of["resident"]),
    )


def _costs_of(costs: Costs) -> list[Any]:
    return [list(field) if isinstance(field, tuple) else field for field in astuple(costs)]


def _costs(fields: list[Any]) -> Costs:
    prefill_s, step_s, *rest = fields
    return Costs(tuple(prefill_s), tuple(step_s), *rest)


def _action(action: Action, places: dict[int, int], numbers: dict[int, int]) -> list[Any]:
    return [type(action).__name__, *(_plain(value, places, numbers) for value in action)]


def _plain(value: Any, places: dict[int, int], numbers: dict[int, int]) -> Any:
    if isinstance(value, Request):
        return places[id(value)]
    if isinstance(value, Batch):
        return numbers[id(value)]
    if isinstance(value, Device):
        return value.key
    if isinstance(value, Turn):
        return [numbers[id(value.batch)], _finite(value.turn_s)]
    if isinstance(value, tuple):
        return [_plain(item, places, numbers) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(seconds: float) -> float | str:
    """JSON has no infinity."""
    return "inf" if seconds == _INF else seconds


def _length(turn_s: float | str | None) -> float | None:
    return None if turn_s is None else float(turn_s)
