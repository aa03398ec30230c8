"""``gpupool plan``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpupool.cli import main
from gpupool.cli.plan import _STRATEGIES
from gpupool.plan.planner import STRATEGIES
from gpupool.simulate.checkpoints import Checkpoint, SwitchTimes
from gpupool.simulate.profile_file import add_to_profiles
from gpupool.simulate.profiles import Point

MARKET = """
[traffic]
duration_s = 60
[[pools]]
name = "p"
[[pools.models]]
name = "a"
count = 4
rate = 0.2
checkpoint = "qwen2_5_7b"
"""


@pytest.fixture
def market(tmp_path: Path) -> str:
    path = tmp_path / "market.toml"
    path.write_text(MARKET)
    return str(path)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["plan", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""  # no terminal is there
    return done.stdout


def test_the_table_has_every_strategy_and_what_is_assumed(market: str) -> None:
    text = run(market, "--ttft-s", "5", "--tbt-s", "0.2", "--attainment", "0.8")
    for title in ("one per model", "autoscaling", "fcfs", "aegaeon", "deadlines", "Assumptions:"):
        assert title in text
    joined = " ".join(text.split())
    assert "80% of a pool's tokens come in time: the first 5 s" in joined and "0.2 s on" in joined


def test_json_has_the_figures(market: str, tmp_path: Path) -> None:
    found = json.loads(run(market, "--json", "-"))
    assert list(found["gpus"]) == list(STRATEGIES) == list(_STRATEGIES)
    (pool,) = found["pools"]
    assert pool["models"] == found["gpus"]["dedicated"] == 4
    for need in pool["needs"]:
        assert [need["enough"], need["attainment"]] in need["tried"]
    path = tmp_path / "plan.json"
    assert "deadlines" in run(market, "--strategy", "deadlines", "--json", str(path))
    assert list(json.loads(path.read_text())["gpus"]) == ["deadlines"]


def test_a_chart_is_drawn(market: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.svg"
    run(market, "--strategy", "autoscaling", "--strategy", "fcfs", "--plot", str(path))
    assert "<svg" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--strategy", "lru"), "lru"),
        (("--duration-s", "0.001"), "no request comes to the pool p"),
        (("--json", "/nowhere/plan.json"), "No such file"),
        (("--attainment", "2"), "attainment"),
        (("--attainment", "nan"), "'--attainment': nan is not in the range"),
        (("--duration-s", "nan"), "'--duration-s': nan is not in the range"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    market: str, arguments: tuple[str, ...], says: str
) -> None:
    done = CliRunner().invoke(main, ["plan", market, *arguments])
    assert done.exit_code != 0
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_a_model_that_no_device_holds(tmp_path: Path) -> None:
    path = tmp_path / "market.toml"
    path.write_text(MARKET.replace('name = "p"', 'name = "p"\ngpu_gb = 16'))
    done = CliRunner().invoke(main, ["plan", str(path)])
    assert done.exit_code == 1 and "p/a does not fit a device with 32768 tokens" in done.stderr


def test_a_model_that_was_measured_need_not_be_known(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    points = [Point(16 * n, n, 0.001 * n, 0.01, 1) for n in range(1, 6)]
    own = Checkpoint("own", 2e9, 1000, 512, SwitchTimes(0.5, 1e-9, 1e-9))
    add_to_profiles(tmp_path / "measured.csv", "mine", own, points)
    path = tmp_path / "market.toml"
    text = MARKET.replace("qwen2_5_7b", "own").replace('"p"\n', '"p"\ngpu = "mine"\n')
    path.write_text(f'profiles = "measured.csv"\n{text}')
    found = json.loads(run(str(path), "--strategy", "deadlines", "--json", "-"))
    assert found["gpus"]["deadlines"] >= 1
    assert any("measured.csv has was measured" in line for line in found["assumptions"])
