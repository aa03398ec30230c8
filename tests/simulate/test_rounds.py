"""Turns of a round, by the paper's formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.schedule.rounds import turn_lengths

STEPS_S = st.lists(st.floats(0.001, 0.09), min_size=1, max_size=8)


def test_the_papers_example() -> None:
    turns_s, attainment = turn_lengths([0.025] * 3, [0.1] * 3, 3.0, 3.0)
    assert turns_s == pytest.approx((3.0, 3.0, 3.0))
    assert attainment == pytest.approx(1.0)


@given(STEPS_S, st.floats(0.01, 20))
def test_a_round_that_can_keep_up_does(steps_s: list[float], switches_s: float) -> None:
    tbt_s = [0.1] * len(steps_s)
    turns_s, attainment = turn_lengths(steps_s, tbt_s, switches_s, 4.0)
    round_s = sum(turns_s) + switches_s
    for step_s, turn_s in zip(steps_s, turns_s, strict=True):
        assert turn_s <= 4.0 + 1e-9
        lasts_s = turn_s / step_s * 0.1
        # Tokens made in a turn last for that share of the round which the formula promises.
        assert lasts_s >= min(1.0, attainment) * round_s * (1 - 1e-9) or attainment == 1.0
        if attainment == 1.0:
            assert lasts_s >= round_s * (1 - 1e-9)


@given(STEPS_S)
def test_without_switches_turns_are_as_long_as_may_be(steps_s: list[float]) -> None:
    turns_s, _ = turn_lengths(steps_s, [0.1] * len(steps_s), 0.0, 4.0)
    assert set(turns_s) == {4.0}
