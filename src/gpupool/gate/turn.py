"""A model's turn in memory: how long it may go on once others want its place."""

from __future__ import annotations

import math
from collections.abc import Callable


class Turn:
    """Counts the steps of one turn, and the time since the last. Not thread safe."""

    def __init__(self, min_steps: int, pause_s: float, clock: Callable[[], float]) -> None:
        """Before the first turn, idle.

        ``min_steps`` is how many steps a turn has before a revoke is obeyed, unless the model is
        idle or no step has opened for ``pause_s`` (its engine may be paused for ever).
        """
        self._min_steps = min_steps
        self._pause_s = pause_s
        self._clock = clock
        self._steps = 0
        self.closed_s = 0.0
        """When the last step closed, or the turn began."""
        self.hurry_at_s = math.inf
        """From then on it may be cut short."""
        self.idle = True
        """No request is unfinished."""

    def begin(self) -> None:
        """The model has come, or tried to."""
        self._steps = 0
        self.closed_s = self._clock()

    def step(self, *, counts: bool) -> None:
        """A step has closed."""
        self._steps += counts
        self.closed_s = self._clock()

    def hurry_in(self, seconds: float) -> None:
        """It may be cut short then, if not earlier."""
        self.hurry_at_s = min(self.hurry_at_s, self._clock() + seconds)

    def calm(self) -> None:
        """Nobody wants its place any more."""
        self.hurry_at_s = math.inf

    def is_over(self, *, in_step: bool = False) -> bool:
        """Whether the model may be made to leave."""
        paused = not in_step and self._clock() - self.closed_s >= self._pause_s
        hurries = self._clock() >= self.hurry_at_s
        return self.idle or self._steps >= self._min_steps or paused or hurries

    def changes_in_s(self) -> list[float]:
        """When it may be over by itself, with no step open."""
        limits_s = [self.closed_s + self._pause_s - self._clock()]
        if self.hurry_at_s < math.inf:
            limits_s.append(self.hurry_at_s - self._clock())
        return limits_s
