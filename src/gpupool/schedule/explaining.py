"""Decisions in words. What they need is kept as numbers first: most are never asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpupool.schedule.work import Action, Batch, Decode, Device, Drop, Prefill, State, Switch

_OTHERS_MAX = 3
_INF = float("inf")


class _Standing(NamedTuple):
    """A model's work on a device."""

    name: str
    requests: int
    fresh: int
    due_s: float
    there: float

    def in_words(self, now_s: float) -> str:
        """Like ``small (2 requests, 1 to prefill, due in 0.41 s, 30% there)``."""
        details = [f"{self.requests} request{'' if self.requests == 1 else 's'}"]
        if self.fresh:
            details.append(f"{self.fresh} to prefill")
        if self.requests:
            due_s = self.due_s - now_s
            details.append(f"due in {due_s:.2f} s" if due_s >= 0 else f"late by {-due_s:.2f} s")
        details.append(f"{self.there:.0%} there")
        return f"{self.name} ({', '.join(details)})"


class Reason(NamedTuple):
    """What there is to say of a switch or of a turn."""

    now_s: float
    turn_s: float | None
    """None: it is a switch."""
    chosen: _Standing
    others: tuple[_Standing, ...]
    """The first of them."""
    later: int
    """How many others there are besides."""

    def in_words(self) -> str:
        """One line."""
        chosen = self.chosen.in_words(self.now_s)
        if self.turn_s is None:
            doing = f"switch to {chosen}"
        else:
            length = "to its end" if self.turn_s == _INF else f"of {self.turn_s:.2f} s"
            doing = f"a turn {length} for {chosen}"
        told = [other.in_words(self.now_s) for other in self.others]
        if self.later:
            told.append(f"{self.later} more later")
        return f"{doing}; {', '.join(told)}" if told else f"{doing}; nobody else has work"


class GivenUp(NamedTuple):
    """What there is to say of a request that is given up."""

    name: str
    waited_s: float

    def in_words(self) -> str:
        """One line."""
        return f"a request of {self.name} is given up: no turn in {self.waited_s:.2f} s"


def reason(
    state: State, now_s: float, action: Action, name_of: Callable[[int], str]
) -> Reason | GivenUp | None:
    """Why a device switches, or whom it gives a turn, or who is given up, before that is applied.

    None for what follows from that: a request that gets its place, a turn that goes on, a rest.
    """
    turn_s: float | None = None
    match action:
        case Drop(request):
            return GivenUp(name_of(request.model), now_s - request.arrival_s)
        case Switch(device, batch, line):
            pass
        case Prefill(device, batch, _, line, float(turn_s)):
            pass
        case Decode(device, batch, float(turn_s), line):
            pass
        case _:
            return None
    others = _first_due(state, device, batch, line)
    return Reason(
        now_s,
        turn_s,
        _standing(state, device, batch, name_of),
        tuple([_standing(state, device, other, name_of) for other in others]),
        max(0, len(device.batches) - (batch in device.batches) - _OTHERS_MAX),
    )


def explain(
    state: State, now_s: float, action: Action, name_of: Callable[[int], str]
) -> str | None:
    """The same in words."""
    found = reason(state, now_s, action, name_of)
    return None if found is None else found.in_words()


def _first_due(state: State, device: Device, batch: Batch, line: tuple[int, ...]) -> list[Batch]:
    """The others that are due first, in order.

    A policy that goes by due times has told them all in that order, and then nothing is computed
    again: with 100 models that takes as long as the decision.
    """
    if len(line) == len(device.batches) - 1:
        first = line[:_OTHERS_MAX]
        found = [other for other in device.batches if other.model in first]
        if len(found) == len(first):
            return sorted(found, key=lambda other: first.index(other.model))
    others = [other for other in device.batches if other is not batch]
    others.sort(key=lambda other: _due_s(state, other))
    return others[:_OTHERS_MAX]


def _standing(
    state: State, device: Device, batch: Batch, name_of: Callable[[int], str]
) -> _Standing:
    due_s, _, fresh = batch.sums or batch.summed(state.goals_for(batch.model))
    there = device.resident.get(batch.model, 0.0)
    return _Standing(name_of(batch.model), len(batch.requests), len(fresh), due_s, there)


def _due_s(state: State, batch: Batch) -> float:
    due_s, _, _ = batch.sums or batch.summed(state.goals_for(batch.model))
    return due_s
