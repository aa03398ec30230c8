"""Policies of requests that drive a desk: engines and requests in simulated time."""

from __future__ import annotations

import json

import pytest
from conducted_bench import STEP_S, SWAP_S, Asked, Live
from hypothesis import given
from hypothesis import strategies as st

from gpupool.live import POLICIES
from gpupool.schedule import deadlines
from gpupool.schedule.recording import differing, from_line, to_line
from gpupool.schedule.work import Goals

LONG_S = 600.0


@st.composite
def workloads(draw: st.DrawFn) -> tuple[int, dict[str, int], list[Asked]]:
    """Models that do not all fit, and requests of them that come within some seconds."""
    pages = draw(st.integers(2, 6))
    models = {name: draw(st.integers(1, pages)) for name in "abcdef"[: draw(st.integers(2, 6))]}
    requests = []
    for number in range(draw(st.integers(1, 14))):
        at_s = draw(st.integers(0, 400)) / 100
        name = draw(st.sampled_from(sorted(models)))
        tokens, announced = draw(st.integers(1, 60)), draw(st.booleans())
        requests.append(Asked(f"request-{number:04d}", name, at_s, tokens, announced))
    return pages, models, requests


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(workloads(), st.booleans())
def test_everybody_is_served_and_decisions_can_be_made_again(
    policy: str, workload: tuple[int, dict[str, int], list[Asked]], tells: bool
) -> None:
    pages, models, requests = workload
    live = Live(pages, models, policy, Goals(ttft_s=1.0, tbt_s=0.1))
    for engine in live.engines.values():
        engine.tells = tells
    for asked in requests:
        live.ask(asked)
    live.run(LONG_S)
    assert [asked.name for asked in requests if asked.done_s < 0] == []
    # Each waits at most for a turn and two swaps of every model, again and again, with nobody
    # overtaking: a bound on the whole is what all of them take one after the other.
    alone_s = sum(asked.tokens * STEP_S for asked in requests)
    switches_s = sum(2 * SWAP_S + deadlines.TURN_S_MIN for _ in live.swap_ins)
    last_s = max(asked.done_s for asked in requests)
    assert last_s <= max(a.at_s for a in requests) + alone_s + switches_s + 1.0
    lines = [to_line(policy, decided) for decided in live.decided]
    again = [from_line(line)[1] for line in lines]
    assert json.dumps(again) == json.dumps(live.decided)
    assert list(differing(again, POLICIES[policy])) == []
