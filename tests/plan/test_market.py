"""What a market may say, and what is said where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.errors import UsageError
from gpupool.plan.market import Market, Model, Pool, Traffic, load_market, trace_of
from gpupool.simulate.checkpoints import CHECKPOINTS, Checkpoint, SwitchTimes
from gpupool.simulate.profile_file import Profiles
from gpupool.simulate.profiles import Fit, known_fit

POOL = '[[pools]]\nname = "p"\n'
MODEL = '[[pools.models]]\nname = "a"\ncheckpoint = "qwen2_5_7b"\n'


def market_of(folder: Path, text: str) -> Market:
    path = folder / "market.toml"
    path.write_text(text)
    return load_market(path)


def test_models_that_are_alike_have_names_and_requests_of_their_own(tmp_path: Path) -> None:
    market = market_of(tmp_path, POOL + MODEL + "rate = 1\ncount = 3\n")
    trace = trace_of(market.pools[0], Traffic(duration_s=60))
    assert {arrival.model for arrival in trace} == {"a-1", "a-2", "a-3"}
    assert trace == sorted(trace, key=lambda arrival: arrival.at_s)
    assert len({arrival.at_s for arrival in trace}) == len(trace)


def test_a_trace_is_taken_from_the_folder_of_the_market(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("time,model,input,output\n0,a,100,20\n1,a,5,5\n")
    market = market_of(tmp_path, POOL + 'trace = "trace.csv"\n' + MODEL)
    assert len(trace_of(market.pools[0], market.traffic)) == 2


def test_a_checkpoint_has_the_times_that_were_measured() -> None:
    model = Model("a", checkpoint="qwen2_5_7b", rate=1.0)
    assert Pool("p", [model]).fit_of(model)[:2] == known_fit("qwen2_5_7b", "H100", {})[:2]


def test_a_checkpoint_may_be_one_that_was_measured_on_the_gpu_of_the_pool() -> None:
    own = Checkpoint("own", 2e9, 1000, 512, SwitchTimes(0.5, 4e-9, 8e-9))
    fit = Fit((0.01, 1e-5, 0.0), (0.01, 0.0, 1e-4))
    measured = Profiles({("own", "g"): fit}, {("own", "g"): own})
    model = Model("a", rate=1.0, checkpoint="own")
    four = Pool("p", [model], gpu="g", gpus_per_device=4)
    assert Pool("p", [model], gpu="g").fit_of(model, measured)[:2] == fit[:2]
    assert four.checkpoint_of(model, measured) == Checkpoint(
        "p/a", 2e9, 1000, 512, SwitchTimes(0.5, 1e-9, 2e-9)
    )
    with pytest.raises(UsageError, match="there is no checkpoint own"):
        Pool("p", [model], gpu="other").checkpoint_of(model, measured)


def test_times_go_by_weights_kv_and_gpus() -> None:
    known = CHECKPOINTS["llama2_13b_chat"]
    model = Model(
        "a",
        rate=1.0,
        weights_gb=known.weights_bytes * 2 / 1e9,
        kv_kb_per_token=known.kv_bytes_per_token * 4 / 1e3,
        times_of="llama2_13b_chat",
    )
    measured = known_fit("llama2_13b_chat", "H100", {})
    one = Pool("p", [model]).fit_of(model)
    four = Pool("p", [model], gpus_per_device=4, parallel_efficiency=0.8).fit_of(model)
    for place, factor in ((0, 2), (1, 4), (2, 2)):
        assert one.step_s[place] == pytest.approx(measured.step_s[place] * factor)
    assert one.prefill_s[1] == pytest.approx(measured.prefill_s[1] * 2)
    for mine, more in ((one.prefill_s, four.prefill_s), (one.step_s, four.step_s)):
        assert [value / 3.2 for value in mine] == pytest.approx(more)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pools = 3", "pools: Expected `array`"),
        ("[goals\n", "line 1"),
        ("", "required field `pools`"),
        (POOL + MODEL + "rate = 1\nrates = 1\n", "pools.*models.*: .*unknown field `rates`"),
        (POOL + MODEL + "rate = 0\n", "> 0"),
        (POOL + MODEL, "p/a needs a rate, or its pool a trace"),
        (
            POOL + 'trace = "t.csv"\n' + MODEL + "rate = 1\n",
            "p/a needs a rate, or its pool a trace",
        ),
        ((POOL + MODEL + "rate = 1\n") * 2, "two pools have one name"),
        (POOL + (MODEL + "rate = 1\n") * 2, "two models of the pool p are named a"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        market_of(tmp_path, text)
    assert "\n" not in str(raised.value) and "market.toml" in str(raised.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Model("a", rate=1.0), "p/a needs either checkpoint, or weights_gb"),
        (Model("a", rate=1.0, weights_gb=2.0), "p/a needs kv_kb_per_token"),
        (
            Model("a", rate=1.0, checkpoint="qwen2_5_7b", weights_gb=2.0),
            "p/a needs either checkpoint, or weights_gb",
        ),
        (Model("a", rate=1.0, checkpoint="none"), "there is no checkpoint none; there are"),
    ],
)
def test_a_model_is_a_checkpoint_or_sizes(model: Model, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Pool("p", [model]).checkpoint_of(model)


def test_a_trace_has_requests_for_models_of_the_pool_alone(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time,model,input,output\n0,b,100,20\n")
    pool = Pool("p", [Model("a", checkpoint="qwen2_5_7b")], trace=str(path))
    with pytest.raises(UsageError, match="b is no model of the pool p"):
        trace_of(pool, Traffic())


def test_more_requests_than_can_be_held_are_refused() -> None:
    pool = Pool("p", [Model("a", count=1000, checkpoint="qwen2_5_7b", rate=1e3)])
    with pytest.raises(UsageError, match="the pool p would have more than"):
        trace_of(pool, Traffic(duration_s=60))


def test_so_short_a_time_that_nothing_comes() -> None:
    pool = Pool("p", [Model("a", checkpoint="qwen2_5_7b", rate=1e-6)])
    with pytest.raises(UsageError, match="no request comes to the pool p in 1 s"):
        trace_of(pool, Traffic(duration_s=1))
