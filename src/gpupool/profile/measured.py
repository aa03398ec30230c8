"""What was measured, put together: medians, fits, and how far they can be trusted. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.errors import UsageError
from gpupool.profile.messages import LeftOut, Started, Switched, Timed
from gpupool.simulate.checkpoints import Checkpoint, SwitchTimes
from gpupool.simulate.profiles import Fit, Point, Verdict, fit_points, least_squares


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: medians, their spread, and what the fit says of them."""

    point: Point
    prefill_spread: float
    """Between the quartiles, as a part of the median."""
    step_spread: float
    prefill: Verdict
    step: Verdict


@dataclass(frozen=True, slots=True)
class Switch:
    """Switches that copied as much: medians."""

    copied_bytes: int
    zeroed_bytes: int
    out_s: float
    in_s: float
    map_s: float
    copy_s: float
    spread: float
    """Of a whole switch, out and in."""
    error: float
    """Relative, of the fit to a whole switch."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on a GPU."""

    gpu: str
    checkpoint: Checkpoint
    fit: Fit
    batches: tuple[Batch, ...]
    left_out: tuple[LeftOut, ...]
    switches: tuple[Switch, ...]

    @property
    def points(self) -> list[Point]:
        """As a file of profiles has them."""
        return [batch.point for batch in self.batches]


def put_together(
    name: str,
    gpu: str,
    started: Started,
    switched: Sequence[Switched],
    timed: Sequence[Timed],
) -> Measured:
    """Of everything that counts, which is not what was run to warm up.

    Raises UsageError where it cannot be fitted, and ModuleNotFoundError.
    """
    times, switches = _switches([one for one in switched if one.run > 0])
    points, spreads = [], []
    for place, cell in enumerate(started.cells):
        runs = [one for one in timed if one.run > 0 and one.cell == place]
        prefills_s = [one.prefill_s for one in runs]
        steps_s = [step_s for one in runs for step_s in one.step_s]
        points.append(
            Point(
                cell.input_tokens,
                cell.batch_size,
                statistics.median(prefills_s),
                statistics.median(steps_s),
                cell.prefill_steps,
            )
        )
        spreads.append((_spread(prefills_s), _spread(steps_s)))
    fit, verdicts = fit_points(points)
    return Measured(
        gpu=gpu,
        checkpoint=Checkpoint(
            name,
            float(started.weights_bytes),
            started.kv_bytes_per_token,
            started.context_tokens_max,
            times,
        ),
        fit=fit,
        batches=tuple(
            Batch(point, *spread, *verdict)
            for point, spread, verdict in zip(points, spreads, verdicts, strict=True)
        ),
        left_out=tuple(started.left_out),
        switches=tuple(switches),
    )


def _switches(switched: Sequence[Switched]) -> tuple[SwitchTimes, list[Switch]]:
    import numpy as np

    groups = [
        [one for one in switched if one.kept == kept]
        for kept in sorted({one.kept for one in switched})
    ]
    copied = [max(one.copied_bytes for one in group) for group in groups]
    if not groups or copied[0] <= 0:
        raise UsageError("no weights were copied at a switch: there is nothing to measure")
    whole_s = [[one.out_s + one.in_s for one in group] for group in groups]
    medians_s = np.array([statistics.median(times) for times in whole_s])
    terms = np.stack([np.ones(len(groups)), np.array(copied, dtype=float)], 1)
    (fixed_s, s_per_byte), errors, _ = least_squares(terms, medians_s)
    of_copies = statistics.median(one.copy_s / one.copied_bytes for one in groups[0])
    found = [
        Switch(
            copied_bytes,
            max(one.zeroed_bytes for one in group),
            out_s=statistics.median(one.out_s for one in group),
            in_s=statistics.median(one.in_s for one in group),
            map_s=statistics.median(one.map_s for one in group),
            copy_s=statistics.median(one.copy_s for one in group),
            spread=_spread(times),
            error=float(error),
        )
        for copied_bytes, group, times, error in zip(copied, groups, whole_s, errors, strict=True)
    ]
    return SwitchTimes(fixed_s, s_per_byte, of_copies), found


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle
