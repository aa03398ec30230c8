"""Devices that are a model's while it has requests, and for a while after."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.schedule.autoscaling import Scaling
from gpupool.simulate.checkpoints import CHECKPOINTS
from gpupool.simulate.result import Result
from gpupool.simulate.simulation import Hardware, simulate
from gpupool.simulate.synthetic import synthetic_trace
from gpupool.simulate.trace import Arrival


def run(arrivals: list[Arrival], devices: int, scaling: Scaling) -> Result:
    models = dict.fromkeys((a.model for a in arrivals), CHECKPOINTS["qwen2_5_7b"])
    hardware = Hardware(devices=devices)
    return simulate(arrivals, "autoscaling", hardware, checkpoints=models, scaling=scaling)


def ask(at_s: float, model: str = "a") -> Arrival:
    return Arrival(at_s, model, 100, 50)


@pytest.mark.parametrize(("second_s", "starts"), [(50.0, 1), (200.0, 2)])
def test_a_device_is_given_back_after_a_while(second_s: float, starts: int) -> None:
    found = run([ask(0), ask(second_s)], 1, Scaling(start_s=30, idle_s=60))
    assert found.switches == starts and found.finished == 2
    assert found.ttft_s[-1] == pytest.approx(30, abs=0.1)
    assert (found.ttft_s[0] < 1) == (starts == 1)


def test_nobody_takes_a_device_that_another_model_has() -> None:
    found = run([ask(0), ask(10, "b")], 1, Scaling(start_s=30, idle_s=60))
    ended_s = 30.0 + 0.5  # of a, about
    assert found.switches == 2
    assert found.ttft_s[-1] == pytest.approx(ended_s + 60 + 30 - 10, abs=0.5)
    assert run([ask(0), ask(10, "b")], 2, Scaling()).ttft_s[-1] == pytest.approx(30, abs=0.1)


def test_a_model_with_many_requests_gets_another_device() -> None:
    trace = [ask(place / 100) for place in range(8)]
    assert run(trace[:5], 4, Scaling(requests_max=4)).switches == 2
    assert run(trace, 4, Scaling(requests_max=4)).switches == 2
    assert run(trace, 4, Scaling(requests_max=8)).switches == 1
    assert run(trace, 1, Scaling(requests_max=4)).finished == 8


def test_a_start_takes_no_less_than_the_load() -> None:
    found = run([ask(0)], 1, Scaling(start_s=0, idle_s=0))
    assert found.ttft_s[0] == pytest.approx(15.2 / 16, abs=0.05)


def test_starts_come_as_often_as_gaps_are_long_enough() -> None:
    """Of Poisson arrivals a share of exp(-rate (service + idle)) find the device given back."""
    rate, scaling = 0.02, Scaling(start_s=1, idle_s=60)
    trace = [ask(a.at_s) for a in synthetic_trace(models=1, rate_per_s=rate, duration_s=2e5)]
    found = run(trace, 1, scaling)
    assert found.switches == pytest.approx(len(trace) * exp(-rate * 61), rel=0.08)


@given(
    st.lists(
        st.tuples(st.floats(0, 300), st.sampled_from("abcd"), st.integers(1, 200)), min_size=1
    ),
    st.integers(1, 4),
    st.builds(Scaling, st.floats(0, 60), st.floats(0, 60), st.integers(1, 4)),
)
@settings(deadline=None)
def test_every_request_finishes(
    requests: list[tuple[float, str, int]], devices: int, scaling: Scaling
) -> None:
    trace = sorted(Arrival(at_s, model, 100, tokens) for at_s, model, tokens in requests)
    found = run(trace, devices, scaling)
    assert found.finished == found.requests == len(trace)
