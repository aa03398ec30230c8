"""Times of decode steps of a batch that keeps its members: turns, not tokens, are simulated."""

from __future__ import annotations

import math
from typing import NamedTuple


class Run(NamedTuple):
    """Steps one after the other: the k-th, from 0, takes ``step_s + k * growth_s``."""

    start_s: float
    step_s: float
    growth_s: float
    steps: int

    def after_s(self, count: int) -> float:
        """When so many of the steps are done."""
        return self.start_s + count * self.step_s + self.growth_s * count * (count - 1) / 2

    def until(self, end_s: float) -> int:
        """How many steps begin before ``end_s``, at most ``steps``."""
        spare_s = end_s - self.start_s
        if spare_s <= 0:
            return 0
        if self.after_s(self.steps) <= end_s:
            return self.steps
        # after_s(n) = end_s, solved for n; rounding errors are put right below.
        half = self.step_s - self.growth_s / 2
        root = math.sqrt(max(0.0, half * half + 2 * self.growth_s * spare_s))
        found = min(self.steps, int(2 * spare_s / (half + root)))
        while found < self.steps and self.after_s(found) < end_s:
            found += 1
        while found > 0 and self.after_s(found - 1) >= end_s:
            found -= 1
        return found

    def first(self, count: int) -> Run:
        """Its first steps."""
        return self._replace(steps=count)


def runs_of(
    start_s: float, step_s: float, growth_s: float, count: int, grain_s: float
) -> list[Run]:
    """``count`` steps as runs; with a grain, each step is cut to a multiple of it."""
    if grain_s <= 0:
        return [Run(start_s, step_s, growth_s, count)]
    found: list[Run] = []
    done = 0
    while done < count:
        grains = math.floor((step_s + done * growth_s) / grain_s + 1e-9)
        more = count - done
        if growth_s > 0:
            more = min(more, math.ceil(((grains + 1) * grain_s - step_s) / growth_s) - done)
        elif growth_s < 0:
            more = min(more, math.floor((grains * grain_s - step_s) / growth_s) + 1 - done)
        run = Run(start_s, max(grains, 1) * grain_s, 0.0, max(more, 1))
        found.append(run)
        start_s, done = run.after_s(run.steps), done + run.steps
    return found


class Steps:
    """The decode steps that a batch is about to take."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self.count = sum(run.steps for run in runs)

    @property
    def end_s(self) -> float:
        """When the last of them is done."""
        last = self._runs[-1]
        return last.after_s(last.steps)

    @property
    def runs(self) -> list[Run]:
        """The steps, in order."""
        return self._runs

    def last_done_s(self, now_s: float) -> float | None:
        """When the last step ended that is done by now."""
        found = None
        for run in self._runs:
            if run.after_s(1) > now_s:
                break
            count = run.until(now_s)
            found = run.after_s(count if run.after_s(count) <= now_s else count - 1)
        return found

    def cut(self, end_s: float) -> bool:
        """Leave out those that begin at ``end_s`` or later, but not the first; whether any were."""
        kept: list[Run] = []
        for run in self._runs:
            count = run.until(end_s)
            if count:
                kept.append(run.first(count))
            if count < run.steps:
                break
        kept = kept or [self._runs[0].first(1)]
        before, self._runs = self.count, kept
        self.count = sum(run.steps for run in kept)
        return self.count < before
