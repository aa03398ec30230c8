"""Both definitions of attainment, against what they say token by token."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.schedule.work import Goals
from gpupool.simulate.decoding import Run
from gpupool.simulate.tally import Tally

GOALS = st.builds(Goals, st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([0.02, 0.1]))
TURNS = st.lists(
    st.tuples(st.floats(0, 12), st.floats(0.001, 0.2), st.floats(0, 0.002), st.integers(1, 60)),
    min_size=1,
    max_size=8,
)
"""Of each: seconds before it, the first step, how much longer each further one is, steps."""


def tally_of(arrival_s: float, goals: Goals, runs: list[Run]) -> Tally:
    tally = Tally(arrival_s, sum(run.steps for run in runs), goals)
    for run in runs:
        tally.add(run, Counter())
    return tally


def by_the_paper(arrival_s: float, goals: Goals, times_s: list[float]) -> int:
    """Tokens that came by arrival + ttft + i tbt."""
    dues_s = [arrival_s + goals.ttft_s + i * goals.tbt_s for i in range(len(times_s))]
    return sum(at_s <= due_s + 1e-9 for at_s, due_s in zip(times_s, dues_s, strict=True))


def by_the_artifact(arrival_s: float, goals: Goals, times_s: list[float]) -> float:
    """The share of time on schedule: a miss sets the clock back, and the target grows on."""
    target_s, reset_s, counted_s, good_s = goals.ttft_s, arrival_s, 0.0, 0.0
    for at_s in times_s:
        if at_s - reset_s <= target_s + 1e-9:
            counted_s = target_s
        else:
            good_s, counted_s, reset_s = good_s + counted_s, 0.0, at_s
        target_s += goals.tbt_s
    good_s += min(target_s, times_s[-1] - reset_s)
    return min(1.0, good_s / (times_s[-1] - arrival_s))


@given(st.floats(0, 5), GOALS, TURNS)
def test_runs_of_tokens_count_as_each_token_by_itself(
    arrival_s: float, goals: Goals, turns: list[tuple[float, float, float, int]]
) -> None:
    runs: list[Run] = []
    at_s = arrival_s
    for pause_s, step_s, growth_s, steps in turns:
        runs.append(Run(at_s + pause_s, step_s, growth_s, steps))
        at_s = runs[-1].after_s(steps)
    times_s = [run.after_s(k + 1) for run in runs for k in range(run.steps)]
    tally = tally_of(arrival_s, goals, runs)
    assert tally.on_time == by_the_paper(arrival_s, goals, times_s)
    assert tally.time_on_schedule == pytest.approx(by_the_artifact(arrival_s, goals, times_s))


def test_figures_that_were_reckoned_by_hand() -> None:
    """Goals of 1 s and 1 s, from 0; tokens at 0.5, 4, 4.5 and 10: due at 1, 2, 3 and 4."""
    gaps_s = [0.5, 3.5, 0.5, 5.5]
    ends_s = accumulate(gaps_s)
    runs = [Run(end_s - gap_s, gap_s, 0.0, 1) for end_s, gap_s in zip(ends_s, gaps_s, strict=True)]
    tally = tally_of(0.0, Goals(1.0, 1.0), runs)
    assert tally.on_time == 1
    # 0.5: on time, 1 s counts. 4: later than 2, a miss, which adds that 1 and sets back to 4, with
    # a target of 3. 4.5: on time, 3 s count. 10: 6 s after 4 is later than 4, a miss, which adds 3
    # and sets back to 10. Of 10 s 4 are good.
    assert tally.time_on_schedule == pytest.approx(0.4)
