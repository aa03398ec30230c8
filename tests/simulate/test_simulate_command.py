"""``gpupool simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpupool.cli import main

TRACE = "time,model,input,output\n0,a,100,20\n0.5,b,2000,300\n1,a,50,1\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["simulate", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_has_the_figures(trace: str) -> None:
    text = run(trace, "--policy", "aegaeon", "--prefill-devices", "6", "--json", "-")
    found = json.loads(text)
    assert found["requests"] == found["finished"] == 3
    assert found["attainment_tokens"] == found["attainment_time"] == 1.0
    for key in ("ttft_s_p50", "ttft_s_p99", "switches", "utilisation", "goodput_tokens_per_s"):
        assert found[key] > 0


def test_policies_are_compared(trace: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    text = run(trace, "--policy", "fcfs", "--policy", "deadlines", "--json", str(path))
    assert "fcfs" in text and "deadlines" in text and "attainment, tokens" in text
    assert [figures["policy"] for figures in json.loads(path.read_text())] == ["fcfs", "deadlines"]


@pytest.mark.parametrize(
    ("options", "first_s", "starts"),
    [
        ((), 30.0, 2),
        (("--start-s", "5"), 5.0, 2),
        (("--start-s", "5", "--requests-max", "1"), 5.0, 3),
        (("--start-s", "0.4", "--idle-s", "0"), 0.95, 3),
    ],
)
def test_autoscaling_has_its_options(
    tmp_path: Path, options: tuple[str, ...], first_s: float, starts: int
) -> None:
    """Two models with a request each, and another of the first, at once or when it is idle."""
    later = 0.5 if "--idle-s" not in options else 20
    path = tmp_path / "trace.csv"
    path.write_text(f"time,model,input,output\n0,a,100,50\n0.1,b,100,50\n{later},a,50,50\n")
    text = run(str(path), "--policy", "autoscaling", *options, "--json", "-")
    found = json.loads(text)
    assert (found["policy"], found["switches"]) == ("autoscaling", starts)
    assert found["ttft_s_p99"] == pytest.approx(first_s, abs=0.1)


def test_a_trace_is_made_up_where_none_is_given() -> None:
    arguments = ("--models", "4", "--duration-s", "60", "--cv", "2", "--zipf", "1", "--json", "-")
    first, again, other = (run(*arguments, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_plot_is_drawn(trace: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    run(trace, "--plot", str(path))
    assert "<svg" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "either TRACE or --models"),
        (("--models", "4", "--gpu", "TPU"), "no times are known"),
        (("--models", "4", "--policy", "lru"), "lru"),
        (("--models", "4", "--link-gbps", "0"), "link-gbps"),
        (("--models", "4", "--policy", "autoscaling", "--start-s", "-1"), "start-s"),
        (("--models", "4", "--policy", "autoscaling", "--requests-max", "0"), "requests-max"),
        (
            ("--models", "4", "--policy", "aegaeon", "--devices", "2", "--prefill-devices", "2"),
            "cannot prefill only",
        ),
        (("--models", "4", "--json", "/nowhere/figures.json"), "No such file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(main, ["simulate", *arguments])
    assert done.exit_code != 0
    assert says in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    "option", ["--gpu-gb", "--link-gbps", "--ttft-s", "--cv", "--zipf", "--start-s", "--host-gb"]
)
def test_what_is_not_a_number_is_refused(option: str) -> None:
    done = CliRunner().invoke(main, ["simulate", "--models", "2", option, "nan"])
    assert done.exit_code == 2
    assert option in done.output and "not in the range" in done.output


def test_how_well_measurements_fit_is_told(tmp_path: Path, trace: str) -> None:
    """Of the models that are simulated alone, and not where times are brought along."""
    pytest.importorskip("numpy")
    rows = ["model,gpu,input_tokens,batch_size,prefill_s,decode_step_s"]
    for model, gpu in (("qwen2_5_7b", "H100"), ("llama2_13b_chat", "H100"), ("qwen2_5_7b", "A100")):
        for place, tokens in enumerate((16, 32, 64, 128, 256, 512)):
            slip = 5 if place == 3 else 1
            rows.append(f"{model},{gpu},{tokens},{place + 1},{slip * (0.01 + tokens / 1e5)},0.01")
        rows.append(f"{model},{gpu},4096,2,0.01,0.01")
    path = tmp_path / "profiles.csv"
    path.write_text("\n".join(rows) + "\n")
    only = tmp_path / "only.csv"
    only.write_text(TRACE.replace(",a,", ",qwen2_5_7b,").replace(",b,", ",qwen2_5_7b,"))
    arguments = ["simulate", str(only), "--profiles", str(path), "--json", "-"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    (fit,) = json.loads(done.stdout)["fits"]
    assert (fit["model"], fit["gpu"], fit["points"]) == ("qwen2_5_7b", "H100", 7)
    assert fit["left_out"] == 2, "one that is off, and one that is too long"
    assert 0 <= fit["error_worst"] < 0.2
    assert done.stderr.startswith("qwen2_5_7b on H100: a fit of 7 points, 2 left out, off by ")
    assert done.stderr.count("\n") == 1
    done = CliRunner().invoke(main, [*arguments, "--assumptions", "aegaeon-artifact"])
    assert json.loads(done.stdout)["fits"] == [] and done.stderr == ""
    assert json.loads(run(trace, "--json", "-"))["fits"] == []


@pytest.mark.parametrize("assumptions", ["honest", "aegaeon-artifact"])
def test_requests_that_were_cut_are_counted(tmp_path: Path, assumptions: str) -> None:
    if assumptions != "honest":
        pytest.importorskip("numpy")
    path = tmp_path / "trace.csv"
    path.write_text("time,model,input,output\n" + "0,llama2_13b_chat,4000,97\n" * 3)
    arguments = [str(path), "--assumptions", assumptions]
    found = json.loads(run(*arguments, "--json", "-"))
    assert (found["cut"], found["finished"]) == (3, 3)
    assert "refused" not in found
    assert "3 / 0 / 3" in run(*arguments)
    path.write_text("time,model,input,output\n0,llama2_13b_chat,4000,96\n")
    assert json.loads(run(*arguments, "--json", "-"))["cut"] == 0


@pytest.mark.parametrize("option", ["--rate", "--cv", "--zipf", "--duration-s"])
def test_options_of_made_up_traces_are_refused_beside_a_trace(trace: str, option: str) -> None:
    """Also with the value that they have unless given."""
    for value in ("1", "0.1"):
        done = CliRunner().invoke(main, ["simulate", trace, option, value])
        assert done.exit_code == 1
        assert f"{option} is of traces that are made up" in done.stderr
