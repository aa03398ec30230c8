"""A recording in Chrome's trace format: turns, switches, requests given up, and why each was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gpupool.schedule.explaining import explain
from gpupool.schedule.recording import Decided, decode, decode_actions
from gpupool.schedule.work import Decode, Drop, Prefill, Rest, Switch


class _Span(NamedTuple):
    """What a device does, until the next decision about it."""

    device: int
    name: str
    model: int | None
    began_s: float
    why: str


def trace_events(recording: Iterable[Decided]) -> Iterator[dict[str, Any]]:
    """Events for Perfetto: a row per device, times in microseconds from the first decision."""
    open_spans: dict[int, _Span] = {}
    first_s: float | None = None
    last_s = 0.0
    for decided in recording:
        first_s = decided.now_s if first_s is None else first_s
        last_s = decided.now_s - first_s
        for span in _begun(decided, last_s):
            if isinstance(span, dict):
                yield span
                continue
            before = open_spans.get(span.device)
            goes_on = before is not None and (before.name, before.model) == (span.name, span.model)
            if goes_on and not span.why:
                continue  # of a turn, why it goes on is not said
            if before is not None:
                yield from _event(before, last_s)
            open_spans[span.device] = span
    for span in open_spans.values():
        yield from _event(span, last_s)


def _begun(decided: Decided, at_s: float) -> Iterator[_Span | dict[str, Any]]:
    names = dict(decided.names)
    state = decode(decided.state)

    def name_of(model: int) -> str:
        return names.get(model, f"model {model}")

    for action in decode_actions(state, decided):
        why = explain(state, decided.now_s, action, name_of) or ""
        match action:
            case Switch(device, batch, _):
                name = f"switch to {name_of(batch.model)}"
                yield _Span(device.key, name, batch.model, at_s, why)
            case Prefill(device, batch) | Decode(device, batch):
                yield _Span(device.key, name_of(batch.model), batch.model, at_s, why)
            case Drop(request):
                yield {
                    "name": f"given up: {name_of(request.model)}",
                    "ph": "i",
                    "s": "g",
                    "pid": 0,
                    "tid": 0,
                    "ts": round(at_s * 1e6),
                    "args": {"why": why},
                }
            case Rest(device):
                yield _Span(device.key, "", None, at_s, "")


def _event(span: _Span, end_s: float) -> Iterator[dict[str, Any]]:
    if span.model is not None:
        yield {
            "name": span.name,
            "ph": "X",
            "pid": 0,
            "tid": span.device,
            "ts": round(span.began_s * 1e6),
            "dur": round((end_s - span.began_s) * 1e6),
            "args": {"why": span.why},
        }
