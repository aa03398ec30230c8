"""Whole simulations: against the figures published with Aegaeon, and policy against policy."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.errors import UsageError
from gpupool.schedule.autoscaling import Scaling
from gpupool.simulate.assumptions import ARTIFACT, HONEST, Assumptions, with_patience
from gpupool.simulate.checkpoints import MIX, Checkpoint
from gpupool.simulate.result import Result, quantile
from gpupool.simulate.simulation import POLICIES, Hardware, simulate
from gpupool.simulate.synthetic import synthetic_trace
from gpupool.simulate.trace import Arrival

POOL = Hardware(devices=16, prefill_devices=6)
# The artifact's own simulator on its own traces, whose rates come to 0.0875 and 0.46 requests/s per
# model for nominal 0.1 and 0.5. The traces here are others of that kind, so these are not the same.
PUBLISHED = {
    ("fcfs", 48, 0.0875, 120.0): 0.751,
    ("fcfs", 80, 0.0875, 120.0): 0.477,
    ("fcfs", 24, 0.46, 60.0): 0.514,
    ("aegaeon", 48, 0.0875, 120.0): 0.998,
    ("aegaeon", 64, 0.0875, 120.0): 0.936,
    ("aegaeon", 80, 0.0875, 120.0): 0.837,
    ("aegaeon", 32, 0.46, 60.0): 0.990,
    ("aegaeon", 48, 0.46, 60.0): 0.898,
}


@cache
def trace_of(models: int, rate: float, duration_s: float, seed: int = 0) -> list[Arrival]:
    return synthetic_trace(models=models, rate_per_s=rate, duration_s=duration_s, seed=seed)


@cache
def run(policy: str, *trace: float, assumptions: Assumptions = HONEST) -> Result:
    models, rate, duration_s, *seed = trace
    arrivals = trace_of(int(models), rate, duration_s, *map(int, seed))
    return simulate(arrivals, policy, POOL, assumptions=assumptions)


@pytest.mark.parametrize("point", PUBLISHED)
def test_under_the_artifacts_assumptions_its_figures_come_out(
    point: tuple[str, int, float, float],
) -> None:
    policy, *trace = point
    found = [run(policy, *trace, seed, assumptions=ARTIFACT) for seed in range(3)]
    # Attainment of a pool near its limit hangs on the trace: by some 0.03 from seed to seed.
    assert mean(r.attainment_time for r in found) == pytest.approx(PUBLISHED[point], abs=0.06)


@pytest.mark.parametrize("assumptions", [HONEST, ARTIFACT], ids=lambda a: a.name)
@pytest.mark.parametrize("trace", [(64, 0.0875, 120.0), (80, 0.0875, 120.0), (48, 0.46, 60.0)])
def test_turns_by_deadline_are_never_worse(
    trace: tuple[int, float, float], assumptions: Assumptions
) -> None:
    ours, theirs, whole = (
        run(policy, *trace, assumptions=assumptions) for policy in ("deadlines", "aegaeon", "fcfs")
    )
    for other in (theirs, whole):
        assert ours.attainment_tokens >= other.attainment_tokens
        assert ours.attainment_time >= other.attainment_time


@pytest.mark.parametrize("assumptions", [HONEST, ARTIFACT], ids=lambda a: a.name)
@pytest.mark.parametrize("trace", [(100, 0.0875, 120.0), (70, 0.46, 60.0)])
def test_a_quarter_more_models_are_served(
    trace: tuple[int, float, float], assumptions: Assumptions
) -> None:
    """Aegaeon is below 90% from 71 and 49 models on; these are more than 1.4 times as many."""
    assert run("deadlines", *trace, assumptions=assumptions).attainment_tokens >= 0.9
    fewer = (trace[0] / 1.25, *trace[1:])
    assert run("aegaeon", *fewer, assumptions=assumptions).attainment_tokens < 0.9


@pytest.mark.parametrize("assumptions", [HONEST, ARTIFACT], ids=lambda a: a.name)
@pytest.mark.parametrize("trace", [(48, 0.0875, 120.0), (24, 0.46, 60.0)])
def test_under_a_fifth_of_the_goals_too(
    trace: tuple[int, float, float], assumptions: Assumptions
) -> None:
    models, rate, duration_s = trace
    for count in (models, int(models / 1.25)):
        arrivals = trace_of(count, rate, duration_s)
        ours, theirs = (
            simulate(arrivals, policy, POOL, assumptions=assumptions, ttft_s=2.0, tbt_s=0.02)
            for policy in ("deadlines", "aegaeon")
        )
        assert ours.attainment_tokens >= 0.9 > theirs.attainment_tokens


@pytest.mark.parametrize(
    ("cv", "zipf", "models", "fewer"), [(4.0, 0.0, 220, 176), (1.0, 1.0, 170, 136)]
)
def test_a_quarter_more_models_in_bursts_or_of_uneven_popularity(
    cv: float, zipf: float, models: int, fewer: int
) -> None:
    served, not_served = (
        synthetic_trace(models=count, rate_per_s=0.0875, duration_s=120, cv=cv, zipf=zipf)
        for count in (models, fewer)
    )
    assert simulate(served, "deadlines", POOL).attainment_tokens >= 0.9
    assert simulate(not_served, "aegaeon", POOL).attainment_tokens < 0.9


@pytest.mark.parametrize(("cv", "zipf"), [(4.0, 0.0), (1.0, 2.0)])
def test_bursts_and_uneven_popularity(cv: float, zipf: float) -> None:
    trace = synthetic_trace(models=64, rate_per_s=0.0875, duration_s=120, cv=cv, zipf=zipf)
    ours, theirs = (simulate(trace, policy, POOL) for policy in ("deadlines", "aegaeon"))
    assert ours.attainment_tokens >= max(0.95, theirs.attainment_tokens)


def test_the_same_arguments_give_the_same_result() -> None:
    trace = trace_of(16, 0.0875, 120.0)
    for policy in ("fcfs", "aegaeon", "deadlines"):
        assert simulate(trace, policy, POOL) == simulate(trace, policy, POOL)


def test_groups_keep_to_themselves() -> None:
    trace = trace_of(32, 0.0875, 120.0)
    whole = simulate(trace, "deadlines", Hardware(devices=8, groups=2))
    assert whole.requests == whole.finished == len(trace)
    alone = simulate(trace, "deadlines", Hardware(devices=8))
    assert whole.attainment_tokens == pytest.approx(alone.attainment_tokens, abs=0.02)


def test_a_host_that_holds_few_models_costs_reads_from_disk() -> None:
    trace = trace_of(32, 0.0875, 120.0)
    enough = simulate(trace, "deadlines", Hardware(devices=4))
    little = simulate(trace, "deadlines", Hardware(devices=4, host_bytes=60e9))
    assert little.switching_s > enough.switching_s
    assert little.ttft_s_p50 > enough.ttft_s_p50


@pytest.mark.parametrize(
    ("hardware", "policy", "says"),
    [
        (Hardware(devices=4, prefill_devices=4), "aegaeon", "cannot prefill only"),
        (Hardware(gpu="TPU"), "aegaeon", "TPU"),
        (Hardware(device_bytes=16e9), "aegaeon", "does not fit .* GB or more"),
        (Hardware(), "none", "there is no policy none"),
        (Hardware(devices=4, groups=5), "fcfs", "cannot be 5 groups"),
    ],
)
def test_what_cannot_be_simulated_is_refused(hardware: Hardware, policy: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        simulate(trace_of(16, 0.0875, 120.0), policy, hardware)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_patience_nobody_waits_for_longer_though_nobody_else_comes(policy: str) -> None:
    """Two models, one device, and a first answer that lasts longer than the patience."""
    impatient = with_patience(HONEST, 3.0)
    arrivals = [Arrival(0.0, "a", 100, 3000), Arrival(0.5, "b", 100, 10)]
    goals = {"ttft_s": 100.0, "tbt_s": 100.0}  # nobody is visited early because it is due
    scaling = Scaling(start_s=1.0)
    hardware = Hardware(devices=1)
    found = simulate(arrivals, policy, hardware, assumptions=impatient, scaling=scaling, **goals)
    assert found.finished + found.dropped == 2
    assert found.dropped == (1 if policy in ("autoscaling", "fcfs") else 0)
    assert max(found.ttft_s) <= 3.0 + 0.1


def test_groups_serve_at_the_same_time() -> None:
    """Each has one of two devices, and one of two models."""
    arrivals = [Arrival(0.0, "a", 100, 500), Arrival(0.1, "b", 100, 500)]
    found = simulate(arrivals, "fcfs", Hardware(devices=2, groups=2))
    assert found.switches == 2 and max(found.ttft_s) < 2


def test_kv_that_comes_back_takes_its_time_on_the_link() -> None:
    """Two models that one device cannot hold in turn, and KV for which the link takes long."""
    large = Checkpoint("qwen2_5_7b", 15e9, 4_000_000, 4096)
    arrivals = [Arrival(0.1 * k, model, 2000, 1000) for k, model in enumerate("abab")]
    taken = {
        kv_bytes: simulate(
            arrivals,
            "deadlines",
            Hardware(devices=1, device_bytes=42e9),
            checkpoints=dict.fromkeys("ab", replace(large, kv_bytes_per_token=kv_bytes)),
            ttft_s=1.0,
        )
        for kv_bytes in (100, 4_000_000)
    }
    few, much = taken.values()
    kv_s = 2 * 2000 * 4e6 / 16e9  # of both requests of a model, at a switch
    idle_s = [r.duration_s - r.switching_s - r.utilisation * r.duration_s for r in (few, much)]
    assert idle_s[0] < 0.1
    assert idle_s[1] > kv_s


def test_what_a_policy_ignores_is_no_reason_to_refuse_it() -> None:
    trace = trace_of(4, 0.5, 20.0)
    both = Hardware(devices=2, prefill_devices=2)
    for policy in ("autoscaling", "fcfs", "deadlines"):
        assert simulate(trace, policy, both) == simulate(trace, policy, Hardware(devices=2))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), st.integers(0, 100))
def test_a_quantile_is_the_smallest_that_is_enough(values: list[int], percent: int) -> None:
    ordered = sorted(values)
    found = quantile(ordered, percent / 100)
    assert found in ordered
    assert 100 * sum(value <= found for value in ordered) >= percent * len(ordered)
    if found > ordered[0]:
        assert 100 * sum(value < found for value in ordered) < percent * len(ordered)


@pytest.mark.parametrize("model", sorted(set(MIX)))
def test_the_room_that_is_asked_for_is_enough(model: str) -> None:
    trace = [Arrival(0.0, model, 10, 10)]
    with pytest.raises(UsageError, match="does not fit") as error:
        simulate(trace, "fcfs", Hardware(device_bytes=10e9))
    found = re.search(r"devices of ([\d.]+) GB", str(error.value))
    assert found is not None
    enough_bytes = float(found[1]) * 1e9
    assert simulate(trace, "fcfs", Hardware(device_bytes=enough_bytes)).finished == 1
    with pytest.raises(UsageError, match="does not fit"):
        simulate(trace, "fcfs", Hardware(device_bytes=enough_bytes - 0.2e9))
