"""Traces that are read, and traces that are made up."""

from __future__ import annotations

import re
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from gpupool.errors import UsageError
from gpupool.simulate.synthetic import synthetic_trace
from gpupool.simulate.trace import Arrival, read_trace


def test_a_trace_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "Request Time,Model Name,Input Length,Output Length\n00:01:02.500,b,10,20\n3.25,a,0,7\n"
    )
    assert read_trace(path) == [Arrival(3.25, "a", 1, 7), Arrival(62.5, "b", 10, 20)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "time or arrival"),
        ("time,model,input\n", "output"),
        ("time,model,input,output\n", "no request"),
        ("time,model,input,output\n1,a,x,2\n", "line 2"),
        ("time,model,input,output\n1,a\n", "line 2"),
        ("time,model,input,output\n-1,a,1,2\n", "no such time"),
        ("time,model,input,output\nnan,a,1,2\n", "no such time"),
        ("time,model,input,output\n1,a,1,99999999999\n", "too many tokens"),
        ("time,model,input,output\n1,a,-1,2\n", "line 2: tokens below 0"),
        (f"time,model,input,output\n1,{'a' * 200_000},1,2\n", "no CSV file"),
        ("time;model;input;output\n1;a;1;2\n", "a column each"),
        ("prompt_time,model,output\n1,a,2\n", "a column each"),
        ("start_time,end_time,model,input,output\n1,2,a,1,2\n", "start_time, end_time"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_trace(path)


def test_what_is_no_text_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match=re.escape(str(path))):
        read_trace(path)


def test_a_column_with_just_the_name_is_taken_before_others(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("first_token_time,Arrival,model,input,output\n9,1,a,3,4\n", "utf-8-sig")
    assert read_trace(path) == [Arrival(1.0, "a", 3, 4)]


def gaps_of(trace: list[Arrival]) -> list[float]:
    return [after.at_s - before.at_s for before, after in pairwise(trace)]


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_gaps_have_the_spread_that_was_asked_for(cv: float) -> None:
    trace = synthetic_trace(models=1, rate_per_s=2.0, duration_s=20_000, cv=cv, seed=1)
    gaps = gaps_of(trace)
    assert statistics.mean(gaps) == pytest.approx(0.5, rel=0.1)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.1)


def test_popularity_follows_zipf() -> None:
    trace = synthetic_trace(models=4, rate_per_s=1.0, duration_s=5000, zipf=2.0)
    counts = [sum(a.model == f"model_{k:04}" for a in trace) for k in range(4)]
    assert len(trace) == pytest.approx(20_000, rel=0.05)
    for place, count in enumerate(counts, start=1):
        assert count == pytest.approx(counts[0] / place**2, rel=0.15)


def test_lengths_have_the_quantiles_of_the_traces_they_are_like() -> None:
    trace = synthetic_trace(models=10, rate_per_s=1.0, duration_s=2000)
    assert statistics.median(a.input_tokens for a in trace) == pytest.approx(619, rel=0.05)
    assert statistics.median(a.output_tokens for a in trace) == pytest.approx(265, rel=0.05)
    assert statistics.mean(a.output_tokens for a in trace) == pytest.approx(300, rel=0.1)


def test_the_same_seed_makes_the_same_trace() -> None:
    first, again, other = (
        synthetic_trace(models=3, rate_per_s=1.0, duration_s=50, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again != other


@pytest.mark.parametrize("wrong", [{"models": 0}, {"rate_per_s": 0.0}, {"cv": 0.0}, {"zipf": -1.0}])
def test_a_trace_of_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        synthetic_trace(**{"models": 1, "rate_per_s": 1.0, "duration_s": 1.0} | wrong)  # type: ignore[arg-type]
