"""Plans: what is found is the smallest that will do, and what it is found for is what was asked."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.plan.market import Autoscaling, Goals, Market, Model, Pool, Traffic, load_market
from gpupool.plan.planner import STRATEGIES, PoolPlanner, plan

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "market.toml"
SHARED = STRATEGIES[1:]


def market_of(models: int, rate: float, seed: int = 0, attainment: float = 0.9) -> Market:
    model = Model("a", count=models, rate=rate, checkpoint="qwen2_5_7b")
    return Market(
        [Pool("p", [model])],
        goals=Goals(attainment=attainment),
        traffic=Traffic(duration_s=60, seed=seed),
        autoscaling=Autoscaling(start_s=5, idle_s=10),
    )


markets = st.builds(
    market_of,
    st.integers(2, 8),
    st.sampled_from([0.1, 0.5, 2.0]),
    st.integers(0, 1000),
    st.sampled_from([0.5, 0.9, 0.99]),
)


@given(markets, st.sampled_from(SHARED))
@settings(max_examples=25, deadline=None)
def test_one_fewer_misses_the_goal_in_the_same_simulation(market: Market, strategy: str) -> None:
    (need,) = plan(market, [strategy]).pools[0].needs
    goal = market.goals.attainment
    planner = PoolPlanner(market.pools[0], market)
    again = planner.simulated(strategy, need.enough)
    assert again.attainment_tokens == need.attainment
    if need.devices is None:
        assert need.attainment < goal and all(share < goal for _, share in need.tried)
        goal = need.attainment
    assert need.attainment >= goal
    if need.enough > 1:
        assert planner.simulated(strategy, need.enough - 1).attainment_tokens < goal


@given(markets, st.sampled_from(SHARED))
@settings(max_examples=10, deadline=None)
def test_a_higher_goal_never_needs_fewer(market: Market, strategy: str) -> None:
    needs = []
    for attainment in (0.3, 0.9):
        goals = msgspec.structs.replace(market.goals, attainment=attainment)
        (need,) = plan(msgspec.structs.replace(market, goals=goals), [strategy]).pools[0].needs
        needs.append(need.devices or 10**6)
    assert needs == sorted(needs)


def test_a_model_that_is_too_busy_for_one_device_gets_more() -> None:
    model = Model("a", rate=30.0, checkpoint="qwen2_5_7b")
    idle = Model("b", rate=1e-9, checkpoint="qwen2_5_7b")
    goals = Goals(ttft_s=1, tbt_s=0.012)
    market = Market([Pool("p", [model, idle])], goals=goals, traffic=Traffic(duration_s=20))
    (need,) = plan(market, ["dedicated"]).pools[0].needs
    assert need.devices is not None and need.devices > 2
    assert need.attainment >= 0.9 and 0 < need.utilisation < 1


def test_starts_that_take_too_long_are_said_to_miss() -> None:
    market = msgspec.structs.replace(
        market_of(4, 0.1), autoscaling=Autoscaling(start_s=60, idle_s=10)
    )
    found = plan(market, ["autoscaling"])
    (need,) = found.pools[0].needs
    assert need.devices is None and found.gpus == {"autoscaling": None}
    assert 1 <= need.enough <= 4


def test_progress_is_told_and_the_same_plan_comes_out() -> None:
    told: list[tuple[str, str, int]] = []
    market = market_of(3, 0.5)
    first = plan(market, progress=lambda *step: told.append(step))
    assert first == plan(market)
    assert {strategy.partition(",")[0] for _, strategy, _ in told} == set(STRATEGIES)


def test_gpus_of_one_device_load_together(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("time,model,input,output\n0,a,10,5\n")
    model = Model("a", weights_gb=64.0, kv_kb_per_token=100.0, context_tokens=1000)
    for gpus, load_s in ((1, 4.0), (4, 1.0)):
        pool = Pool("p", [model], gpus_per_device=gpus, trace=str(trace))
        found = PoolPlanner(pool, Market([pool])).simulated("fcfs", 1)
        assert found.ttft_s_p50 == pytest.approx(load_s, abs=0.1)


def test_the_market_that_ships() -> None:
    market = load_market(EXAMPLE)
    short = msgspec.structs.replace(market.traffic, duration_s=60)
    found = plan(msgspec.structs.replace(market, traffic=short))
    small, large = found.pools
    assert (small.models, large.models) == (28, 19)
    assert found.gpus["dedicated"] == 28 + 4 * 19
    for pool in found.pools:
        of = {need.strategy: need for need in pool.needs}
        for shared in ("fcfs", "aegaeon", "deadlines"):
            assert (of[shared].devices or 10**6) < (of["dedicated"].devices or 0) / 2
        assert (of["deadlines"].devices or 10**6) <= (of["aegaeon"].devices or 0)
    assert any("4 GPUs are one device" in text for text in found.assumptions)


@pytest.mark.parametrize("strategy", SHARED)
def test_models_of_one_pool_can_be_of_many_sizes(strategy: str) -> None:
    models = [
        Model(f"m{gb}", rate=0.2, weights_gb=gb, kv_kb_per_token=100.0) for gb in (1.0, 10.0, 40.0)
    ]
    market = Market([Pool("p", models)], traffic=Traffic(duration_s=60))
    (found,) = plan(market, [strategy]).pools
    assert found.weights_bytes == 51e9 and found.needs[0].enough >= 1
