"""Turns in closed form against their steps, one by one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.schedule.work import Goals
from gpupool.simulate.decoding import Run, Steps, runs_of
from gpupool.simulate.tally import Tally

STARTS_S = st.floats(0, 100)
STEPS_S = st.floats(0.002, 0.3)
GROWTHS_S = st.sampled_from((0.0, 1e-7, 5e-6, 1e-4))
COUNTS = st.integers(1, 400)


def ends_of(start_s: float, step_s: float, growth_s: float, count: int) -> list[float]:
    ends_s = []
    for place in range(count):
        start_s += step_s + place * growth_s
        ends_s.append(start_s)
    return ends_s


@given(STARTS_S, STEPS_S, GROWTHS_S, COUNTS, st.floats(-1, 200))
def test_steps_before_a_time(
    start_s: float, step_s: float, growth_s: float, count: int, end_s: float
) -> None:
    run = Run(start_s, step_s, growth_s, count)
    ends_s = ends_of(start_s, step_s, growth_s, count)
    assert run.after_s(count) == pytest.approx(ends_s[-1])
    found = run.until(end_s)
    begins_s = [start_s, *ends_s[:-1]]
    assert all(begin_s <= end_s + 1e-9 for begin_s in begins_s[:found])
    assert all(begin_s >= end_s - 1e-9 for begin_s in begins_s[found:])


@given(STEPS_S, st.sampled_from((-3e-7, 0.0, 1e-6, 3e-5)), COUNTS)
def test_a_grain_cuts_every_step(step_s: float, growth_s: float, count: int) -> None:
    runs = runs_of(0.0, step_s, growth_s, count, 0.001)
    steps_s = [run.step_s for run in runs for _ in range(run.steps)]
    assert len(steps_s) == count
    for place, cut_s in enumerate(steps_s):
        whole_s = step_s + place * growth_s
        assert whole_s - 0.001 - 1e-8 < cut_s <= whole_s + 1e-8
    for before, after in pairwise(runs):
        assert after.start_s == pytest.approx(before.after_s(before.steps))


@given(STEPS_S, GROWTHS_S, COUNTS, st.floats(0, 50))
def test_a_cut_leaves_the_step_under_way(
    step_s: float, growth_s: float, count: int, now_s: float
) -> None:
    steps = Steps(runs_of(0.0, step_s, growth_s, count, 0.0))
    end_s = steps.end_s
    assert steps.cut(now_s) == (steps.count < count)
    assert 1 <= steps.count <= count
    assert steps.end_s >= min(now_s, end_s) - 1e-9
    done_s = steps.last_done_s(now_s)
    assert done_s is None or done_s <= now_s + 1e-9


def naive(goals: Goals, arrival_s: float, times_s: list[float]) -> tuple[int, float]:
    """Both definitions of attainment, token by token."""
    on_time = sum(
        at_s <= arrival_s + goals.ttft_s + place * goals.tbt_s + 1e-9
        for place, at_s in enumerate(times_s)
    )
    target_s, elapsed_s, counted_s, good_s, last_s = goals.ttft_s, 0.0, 0.0, 0.0, arrival_s
    for at_s in times_s:
        elapsed_s += at_s - last_s
        last_s = at_s
        if elapsed_s <= target_s + 1e-9:
            counted_s = target_s
        else:
            good_s, counted_s, elapsed_s = good_s + counted_s, 0.0, 0.0
        target_s += goals.tbt_s
    good_s += min(target_s, elapsed_s)
    return on_time, min(1.0, good_s / (last_s - arrival_s))


@given(
    st.floats(0, 30),
    st.lists(st.tuples(st.floats(0, 12), STEPS_S, GROWTHS_S, COUNTS), min_size=1, max_size=6),
)
def test_a_tally_counts_as_if_token_by_token(
    arrival_s: float, pauses: list[tuple[float, float, float, int]]
) -> None:
    goals = Goals(ttft_s=5.0, tbt_s=0.1)
    times_s: list[float] = []
    at_s = arrival_s
    total = sum(count for *_, count in pauses)
    tally, gaps = Tally(arrival_s, total, goals), Counter[int]()
    for pause_s, step_s, growth_s, count in pauses:
        run = Run(at_s + pause_s, step_s, growth_s, count)
        tally.add(run, gaps)
        times_s += [run.after_s(place + 1) for place in range(count)]
        at_s = times_s[-1]
    on_time, share = naive(goals, arrival_s, times_s)
    assert tally.tokens == total
    assert tally.on_time == on_time
    assert tally.time_on_schedule == pytest.approx(share, abs=1e-6)
    assert gaps.total() == total - 1
