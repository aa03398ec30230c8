"""Traces: who asks which model when, for how much."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from gpupool.errors import UsageError

_TOKENS_MAX = 10_000_000
_SECONDS_MAX = 1e9


class Arrival(NamedTuple):
    """One request of a trace."""

    at_s: float
    model: str
    input_tokens: int
    output_tokens: int


def read_trace(path: Path) -> list[Arrival]:
    """Requests of a CSV file in order of arrival. Raises UsageError and OSError.

    The columns are found by their names: one with ``time`` or ``arrival`` (seconds, or
    hours:minutes:seconds), one with ``model``, one with ``input`` or ``prompt``, one with
    ``output``, alone or as part of a name that no other column shares; no tokens count as 1.
    """
    try:
        return sorted(_rows(path), key=lambda arrival: arrival.at_s)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no CSV file: {error}") from None


def _rows(path: Path) -> list[Arrival]:
    found: list[Arrival] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        columns = [
            _column(path, header, *names)
            for names in (("time", "arrival"), ("model",), ("input", "prompt"), ("output",))
        ]
        if len(set(columns)) < len(columns):
            raise UsageError(f"{path}: time, model, input and output need a column each")
        for row in reader:
            if not row:
                continue
            try:
                at, model, input_tokens, output_tokens = (row[column] for column in columns)
                arrival = Arrival(_seconds(at), model, int(input_tokens), int(output_tokens))
            except (IndexError, ValueError):
                raise UsageError(f"{path}, line {reader.line_num}: cannot be read") from None
            if not 0 <= arrival.at_s <= _SECONDS_MAX:
                raise UsageError(f"{path}, line {reader.line_num}: no such time: {at}")
            if min(arrival.input_tokens, arrival.output_tokens) < 0:
                raise UsageError(f"{path}, line {reader.line_num}: tokens below 0")
            if max(arrival.input_tokens, arrival.output_tokens) > _TOKENS_MAX:
                raise UsageError(f"{path}, line {reader.line_num}: too many tokens")
            found.append(
                arrival._replace(
                    input_tokens=max(1, arrival.input_tokens),
                    output_tokens=max(1, arrival.output_tokens),
                )
            )
    if not found:
        raise UsageError(f"{path}: there is no request in it")
    return found


def _column(path: Path, header: list[str], *names: str) -> int:
    titles = [title.strip().lower() for title in header]
    found = [place for place, title in enumerate(titles) if title in names]
    found = found or [
        place for place, title in enumerate(titles) if any(name in title for name in names)
    ]
    if not found:
        raise UsageError(f"{path}: no column's name has {' or '.join(names)} in it")
    if len(found) > 1:
        several = ", ".join(header[place] for place in found)
        raise UsageError(f"{path}: which of {several} is it? Name one {names[0]}")
    return found[0]


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total
