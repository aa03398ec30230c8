"""How one request was served, kept up as its tokens come."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from gpupool.schedule.work import Goals
from gpupool.simulate.decoding import Run


class Tally:
    """Counts tokens that are on time, by two definitions.

    The paper's (Aegaeon, SOSP 2025): token i, from 0, is due at arrival + ttft + i * tbt, and
    attainment is the share of tokens that meet that. Its artifact's: the share of the request's
    time that is on schedule, with a clock that is set back to 0 at each miss while the target grows
    on, so that one miss gives another ``ttft_s`` to spare.
    """

    __slots__ = (
        "_counted_s",
        "_good_s",
        "_reset_s",
        "_target_s",
        "arrival_s",
        "dropped",
        "first_s",
        "goals",
        "last_s",
        "on_time",
        "output_tokens",
        "tokens",
    )

    def __init__(self, arrival_s: float, output_tokens: int, goals: Goals) -> None:
        self.arrival_s = arrival_s
        self.output_tokens = output_tokens
        self.goals = goals
        self.tokens = 0
        self.on_time = 0
        self.first_s: float | None = None
        self.last_s = arrival_s
        self.dropped = False
        self._target_s = goals.ttft_s
        self._reset_s = arrival_s
        self._counted_s = 0.0
        self._good_s = 0.0

    def add_first(self, at_s: float, gaps_ms: Counter[int]) -> None:
        """The token of a prefill came; gaps between tokens are counted by their milliseconds."""
        self.add(Run(at_s, 0.0, 0.0, 1), gaps_ms)

    def add(self, run: Run, gaps_ms: Counter[int]) -> None:
        """A token came at the end of each step."""
        first_s, last_s = run.after_s(1), run.after_s(run.steps)
        if self.first_s is None:
            self.first_s = first_s
        else:
            gaps_ms[int((first_s - self.last_s) * 1000 + 0.5)] += 1
        if run.steps > 1:
            mean_s = (last_s - first_s) / (run.steps - 1)
            gaps_ms[int(mean_s * 1000 + 0.5)] += run.steps - 1
        slowest_s = run.step_s + max(0.0, run.growth_s) * (run.steps - 1)
        if slowest_s <= self.goals.tbt_s:  # it only gets earlier, measured against what is due
            self.on_time += self._on_time(run)
            self._note(first_s, 1)
            if run.steps > 1:
                self._note(last_s, run.steps - 1)
        else:
            due_s = self.arrival_s + self.goals.ttft_s + self.tokens * self.goals.tbt_s
            for place in range(run.steps):
                at_s = run.after_s(place + 1)
                self.on_time += at_s <= due_s + place * self.goals.tbt_s + 1e-9
                self._note(at_s, 1)
        self.tokens += run.steps
        self.last_s = last_s

    @property
    def time_on_schedule(self) -> float:
        """The artifact's attainment, 0 to 1; a request that was given up has 0."""
        if self.first_s is None or self.dropped:
            return 0.0
        total_s = self.last_s - self.arrival_s
        good_s = self._good_s + min(self._target_s, self.last_s - self._reset_s)
        return min(1.0, good_s / total_s) if total_s > 0 else 1.0

    def _on_time(self, run: Run) -> int:
        tbt_s = self.goals.tbt_s
        due_s = self.arrival_s + self.goals.ttft_s + self.tokens * tbt_s + 1e-9
        if run.after_s(1) <= due_s:
            return run.steps
        if run.after_s(run.steps) > due_s + (run.steps - 1) * tbt_s:
            return 0
        late = bisect_left(
            range(run.steps), True, key=lambda k: run.after_s(k + 1) <= due_s + k * tbt_s
        )
        return run.steps - late

    def _note(self, at_s: float, count: int) -> None:
        """``count`` tokens, the last at ``at_s``, which are all on schedule or are only one."""
        self._target_s += (count - 1) * self.goals.tbt_s
        if at_s - self._reset_s <= self._target_s + 1e-9:
            self._counted_s = self._target_s
        else:
            self._good_s += self._counted_s
            self._counted_s = 0.0
            self._reset_s = at_s
        self._target_s += self.goals.tbt_s
