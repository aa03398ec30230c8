"""Files of measured profiles: CSV, a row for each batch that was measured."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpupool.errors import UsageError
from gpupool.simulate.checkpoints import CHECKPOINTS, Checkpoint, SwitchTimes
from gpupool.simulate.profiles import Fit, Point, fit_points
from gpupool.simulate.trace import Arrival

_TIMES = ("model", "gpu", "input_tokens", "batch_size", "prefill_s", "decode_step_s")
_STEPS = "prefill_steps"
_SIZES = ("weights_bytes", "kv_bytes_per_token", "context_tokens_max")
_SWITCH = ("switch_fixed_s", "switch_s_per_byte", "copy_s_per_byte")
COLUMNS = (*_TIMES, _STEPS, *_SIZES, *_SWITCH)
"""A file may lack those from ``prefill_steps`` on. Sizes and times of a switch are the same in all
rows of a model on a GPU."""

Key = tuple[str, str]
"""A model, and the GPU it was measured on."""


@dataclass(frozen=True, slots=True)
class Profiles:
    """What a file says."""

    fits: Mapping[Key, Fit]
    """As ``simulate`` takes them."""
    checkpoints: Mapping[Key, Checkpoint]
    """Of what the file has sizes of."""

    def on(self, gpu: str) -> dict[str, Checkpoint]:
        """The checkpoints that were measured on a GPU, by name."""
        return {name: found for (name, on), found in self.checkpoints.items() if on == gpu}

    def checkpoints_of(self, trace: Iterable[Arrival], gpu: str) -> dict[str, Checkpoint]:
        """What the models of a trace are, as ``simulate`` takes it.

        Those that have the name of a checkpoint of the file are that one. Where the file has sizes
        at all, models whose names say nothing get its checkpoints in turn. Raises UsageError where
        the file has nothing of that GPU.
        """
        gpus = dict.fromkeys(on for _, on in self.fits)
        if gpus and gpu not in gpus:
            raise UsageError(
                f"nothing was measured on {gpu}: the profiles are of {', '.join(gpus)}"
            )
        measured = self.on(gpu)
        in_turn = list(measured.values())
        found: dict[str, Checkpoint] = {}
        dealt = 0
        for name in dict.fromkeys(arrival.model for arrival in trace):
            if name in measured:
                found[name] = measured[name]
            elif in_turn and name not in CHECKPOINTS:
                found[name] = in_turn[dealt % len(in_turn)]
                dealt += 1
        return found


NOTHING_MEASURED = Profiles({}, {})


def read_profiles(path: Path) -> Profiles:
    """Fits and checkpoints of a file. Raises UsageError, OSError and ModuleNotFoundError."""
    try:
        points, described = _read(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no CSV file: {error}") from None
    fits = {}
    for (model, gpu), found in points.items():
        try:
            fits[model, gpu] = fit_points(found)[0]
        except UsageError as error:
            raise UsageError(f"{path}, {model} on {gpu}: {error}") from None
    return Profiles(fits, {key: found for key, found in described.items() if found is not None})


def _read(path: Path) -> tuple[dict[Key, list[Point]], dict[Key, Checkpoint | None]]:
    points: dict[Key, list[Point]] = {}
    described: dict[Key, Checkpoint | None] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := set(_TIMES) - set(reader.fieldnames or ()):
            raise UsageError(f"{path}: it has no column {', '.join(sorted(missing))}")
        for row in reader:
            key = (row["model"], row["gpu"])
            try:
                points.setdefault(key, []).append(_point(row))
                checkpoint = _checkpoint(row)
            except UsageError as error:
                raise UsageError(f"{path}, line {reader.line_num}: {error}") from None
            if described.setdefault(key, checkpoint) != checkpoint:
                raise UsageError(
                    f"{path}, line {reader.line_num}: sizes and times of a switch must be those of"
                    f" the other rows of {key[0]} on {key[1]}"
                )
    return points, described


def add_to_profiles(path: Path, gpu: str, checkpoint: Checkpoint, points: Sequence[Point]) -> None:
    """Write what was measured of a model on a GPU in place of what the file had of it.

    All else in the file stays. Raises UsageError and OSError; the file is as it was then.
    """
    rows: list[dict[str, str]] = []
    columns = list(COLUMNS)
    if path.exists():
        read_profiles(path)  # what is no such file is not written to
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns += [name for name in reader.fieldnames or () if name not in columns]
            rows = [row for row in reader if (row["model"], row["gpu"]) != (checkpoint.name, gpu)]
    rows += [_row(gpu, checkpoint, point) for point in points]
    path = path.resolve()  # where it is a link to, if it is one
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with beside.open("x", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _point(row: Mapping[str, str]) -> Point:
    length, batch = (_whole(row, name) for name in _TIMES[2:4])
    prefill_s, step_s = (_number(row, name) for name in _TIMES[4:])
    return Point(length, batch, prefill_s, step_s, _whole(row, _STEPS) if row.get(_STEPS) else None)


def _checkpoint(row: Mapping[str, str]) -> Checkpoint | None:
    given = [name for name in (*_SIZES, *_SWITCH) if row.get(name)]
    if not given:
        return None
    if missing := [name for name in _SIZES if name not in given]:
        raise UsageError(f"it has {given[0]} and not {missing[0]}: give all sizes or none")
    weights_bytes = _number(row, _SIZES[0])
    kv_bytes, context_tokens = (_whole(row, name) for name in _SIZES[1:])
    switch = None
    if any(name in given for name in _SWITCH):
        if missing := [name for name in _SWITCH if name not in given]:
            raise UsageError(f"it has no {missing[0]}: give all times of a switch or none")
        fixed_s, s_per_byte = (_number(row, name, zero=True) for name in _SWITCH[:2])
        switch = SwitchTimes(fixed_s, s_per_byte, _number(row, _SWITCH[2]))
    return Checkpoint(row["model"], weights_bytes, kv_bytes, context_tokens, switch)


def _number(row: Mapping[str, str], name: str, *, zero: bool = False) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        raise UsageError(f"{name} is no number") from None
    most = 1e15 if name in _SIZES else 1e9
    if not (0 < value < most or (zero and value == 0)):
        raise UsageError(f"{name} is {value:g} and not {'at least' if zero else 'above'} 0")
    return value


def _whole(row: Mapping[str, str], name: str) -> int:
    value = _number(row, name)
    if value != int(value):
        raise UsageError(f"{name} is {value:g} and not a whole number")
    return int(value)


def _row(gpu: str, checkpoint: Checkpoint, point: Point) -> dict[str, str]:
    values: list[object] = [checkpoint.name, gpu, *point]
    values += [checkpoint.weights_bytes, checkpoint.kv_bytes_per_token]
    values.append(checkpoint.context_tokens_max)
    if checkpoint.switch is not None:
        switch = checkpoint.switch
        values += [switch.fixed_s, switch.s_per_byte, switch.copy_s_per_byte]
    return {
        name: "" if value is None else str(value)
        for name, value in zip(COLUMNS, values, strict=False)
    }
