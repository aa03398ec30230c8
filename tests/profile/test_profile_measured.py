"""What is put together from the messages of an engine whose times are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.errors import UsageError
from gpupool.profile.measured import put_together
from gpupool.profile.messages import Cell, LeftOut, Started, Switched, Timed
from gpupool.profile.report import describe

pytest.importorskip("numpy")
STARTED = Started(
    "GPU",
    1000,
    128,
    4096,
    [Cell(n, b, 1, 18) for n in (16, 256, 1024) for b in (1, 2, 4)] + [Cell(4096, 4, 2, 19)],
    [LeftOut(4096, 64, "over 16384 prompt tokens")],
)
Noise = Callable[[int], float]


def told(
    runs: int, fixed_s: float, s_per_byte: float, noise: Noise, weights_bytes: int = 1000
) -> tuple[list[Switched], list[Timed]]:
    switched, timed = [], []
    for run in range(runs + 1):
        factor = noise(run)
        for kept in range(5):
            copied = weights_bytes * (4 - kept) // 4
            whole_s = factor * (fixed_s + copied * s_per_byte)
            switched.append(
                Switched(run, kept, copied, 50, whole_s / 4, whole_s * 3 / 4, 0.001, 0.002)
            )
        for place, cell in enumerate(STARTED.cells):
            whole = cell.input_tokens * cell.batch_size
            prefill_s = 0.01 + 1e-5 * whole + (0.5 if cell.prefill_steps > 1 else 0)
            step_s = 0.02 + 1e-7 * whole + 1e-4 * cell.batch_size
            timed.append(Timed(run, place, factor * prefill_s, [factor * step_s] * 3))
    return switched, timed


@given(
    st.floats(1e-4, 1),
    st.floats(1e-6, 1e-2),
    st.integers(1, 7),
    st.floats(0.01, 100),
    st.floats(0.01, 100),
)
def test_medians_of_all_but_the_first_round_are_fitted(
    fixed_s: float, s_per_byte: float, runs: int, first: float, worst: float
) -> None:
    def noise(run: int) -> float:
        """The first round is to warm up; of three or more one may go wrong altogether."""
        if run == 0:
            return first
        return worst if run == 2 and runs > 2 else 1.0

    found = put_together("m", "g", STARTED, *told(runs, fixed_s, s_per_byte, noise))
    switch = found.checkpoint.switch
    assert switch is not None
    assert switch.fixed_s == pytest.approx(fixed_s, rel=1e-6)
    assert switch.s_per_byte == pytest.approx(s_per_byte, rel=1e-6)
    assert [one.copied_bytes for one in found.switches] == [1000, 750, 500, 250, 0]
    assert found.fit.prefill_s[:2] == pytest.approx((0.01, 1e-5), rel=1e-6)
    assert found.fit.step_s == pytest.approx((0.02, 1e-7, 1e-4), rel=1e-6)
    assert found.fit.left_out == 1
    assert found.batches[-1].prefill.left_out == "several steps"
    text = describe(found)
    assert "1 of 10 batches left out of a fit" in text
    assert "not measured: 1, over 16384 prompt tokens" in text


@pytest.mark.parametrize("spreads", [True, False])
def test_times_that_are_all_over_the_place_are_told_of(spreads: bool) -> None:
    noise = [1.0, 1.0, 1.5, 0.7, 1.2, 0.6] if spreads else [1.0, 1.0, 1.02, 0.99, 1.0, 1.01]
    found = put_together("m", "g", STARTED, *told(5, 0.1, 1e-4, noise.__getitem__))
    assert ("something else used the machine" in describe(found)) == spreads


def test_a_switch_that_takes_as_long_whatever_it_copies_has_no_part_by_the_byte() -> None:
    switched, timed = told(3, 0.1, 1e-4, lambda _: 1.0)
    falling = [
        Switched(one.run, one.kept, one.copied_bytes, 0, 0.0, 0.2 - 1e-4 * one.copied_bytes, 0, 0.1)
        for one in switched
    ]
    switch = put_together("m", "g", STARTED, falling, timed).checkpoint.switch
    assert switch is not None
    assert switch.s_per_byte == 0
    assert 0.1 <= switch.fixed_s <= 0.2


def test_a_model_without_weights_is_refused() -> None:
    switched, timed = told(1, 0.1, 1e-4, lambda _: 1.0, weights_bytes=0)
    with pytest.raises(UsageError, match="no weights were copied"):
        put_together("m", "g", STARTED, switched, timed)
