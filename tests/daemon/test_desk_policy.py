"""Policies of requests that drive a desk: engines and requests in simulated time."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest
from conducted_bench import STEP_S, SWAP_S, Asked, Live
from desk_bench import REVOKE_S, SWAP, Bench
from hypothesis import given
from hypothesis import strategies as st

from gpupool.daemon import protocol as p
from gpupool.daemon.live_policy import LivePolicy
from gpupool.live import POLICIES
from gpupool.schedule import deadlines, explaining
from gpupool.schedule.recording import differing, from_line, to_line
from gpupool.schedule.timeline import trace_events
from gpupool.schedule.work import Action, Goals, State, Switch

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
        requests.append(Asked(f"request{number:04d}", name, at_s, tokens, announced))
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
    switches = sum(action[0] == "Switch" for d in live.decided for action in d.actions)
    assert live.revokes <= switches * (len(models) - 1), "nobody leaves but for a switch"
    lines = [to_line(policy, decided) for decided in live.decided]
    again = [from_line(line)[1] for line in lines]
    assert json.dumps(again) == json.dumps(live.decided)
    assert list(differing(again, POLICIES[policy])) == []


@given(workloads(), st.booleans())
def test_what_is_kept_from_look_to_look_is_what_a_fresh_look_would_find(
    workload: tuple[int, dict[str, int], list[Asked]], tells: bool
) -> None:
    """The sums of batches that did not change, and the order of due times for explanations."""
    pages, models, requests = workload
    kept = 0

    def decide(state: State, now_s: float) -> list[Action]:
        nonlocal kept
        actions = deadlines.decide(state, now_s)
        for batch in state.devices[0].batches if state.ready else ():
            assert batch.sums == batch.summed(state.goals_for(batch.model))
            kept += 1
        for action in actions:
            if isinstance(action, Switch):
                others = [b for b in state.devices[0].batches if b is not action.batch]
                others.sort(key=lambda batch: batch.summed(state.goals_for(batch.model))[0])
                found = explaining.reason(state, now_s, action, str)
                assert isinstance(found, explaining.Reason)
                assert [o.name for o in found.others] == [str(b.model) for b in others[:3]]
                assert len(found.others) + found.later == len(others)
        return actions

    with patch.dict(POLICIES, {"deadlines": decide}):
        live = Live(pages, models, "deadlines", Goals(ttft_s=1.0, tbt_s=0.1))
        for engine in live.engines.values():
            engine.tells = tells
        for asked in requests:
            live.ask(asked)
        live.at(1.0, lambda: live.conductor.set_goals(live.bench.key_of("a"), 0.5, 0.05))
        live.run(LONG_S)
    assert kept > 0


def three_that_do_not_fit(policy: str, **goals: float) -> Live:
    return Live(2, {"a": 2, "b": 2, "c": 2}, policy, Goals(**goals))


def test_a_switch_comes_when_tokens_are_due_and_not_before() -> None:
    """One answers ahead of its reader, so the others wait for as long as their goals allow."""
    live = three_that_do_not_fit("deadlines", ttft_s=2.0, tbt_s=0.5)
    asked = [Asked(f"request{name}", name, 0.01 * k, 100) for k, name in enumerate("abc")]
    for request in asked:
        live.ask(request)
    live.run(LONG_S)
    assert all(request.first_s - request.at_s <= 2.0 for request in asked)
    assert len(live.swap_ins) < 3 + sum(r.tokens * STEP_S for r in asked) / 0.3


def test_a_switch_makes_room_for_its_own_model_alone() -> None:
    """Whoever has just come is not made to leave for others that wait."""
    live = three_that_do_not_fit("fcfs")
    for k, name in enumerate("abc" * 3):
        live.ask(Asked(f"request{k}", name, 0.001 * k, 20))
    live.run(LONG_S)
    switches = sum(action[0] == "Switch" for d in live.decided for action in d.actions)
    assert len(live.swap_ins) == switches


def test_decisions_are_explained() -> None:
    live = three_that_do_not_fit("deadlines", ttft_s=1.0, tbt_s=0.1)
    for k, name in enumerate("abc"):
        live.ask(Asked(f"request{name}", name, 0.01 * k, 30))
    live.run(LONG_S)
    why = live.why()
    assert why.policy == "deadlines"
    ages = [ago_s for ago_s, _ in why.decisions]
    assert ages == sorted(ages) and ages[0] >= 0
    switches = [text for _, text in why.decisions if text.startswith("switch to ")]
    assert {text.split()[2] for text in switches} == {"a", "b", "c"}
    assert all("due in" in text or "late by" in text for text in switches)
    turns = live.with_policy("turns")
    assert turns.why().decisions == []


@given(workloads(), st.integers(0, 300), st.data())
def test_engines_that_die_stop_nobody(
    workload: tuple[int, dict[str, int], list[Asked]], dies: int, data: st.DataObject
) -> None:
    pages, models, requests = workload
    live = Live(pages, models, "deadlines", Goals(ttft_s=1.0, tbt_s=0.1))
    victim = data.draw(st.sampled_from(sorted(models)))
    for asked in requests:
        live.ask(asked)
    live.die(victim, dies / 100)
    live.run(LONG_S)
    assert [a.name for a in requests if a.done_s < 0 and a.model != victim] == []
    assert live.bench.status().pages_fenced == 0
    assert list(differing(live.decided, POLICIES["deadlines"])) == []


@given(workloads(), st.integers(0, 300))
def test_a_router_that_goes_leaves_nothing_behind(
    workload: tuple[int, dict[str, int], list[Asked]], goes: int
) -> None:
    pages, models, requests = workload
    live = Live(pages, models, "deadlines", Goals(ttft_s=1.0, tbt_s=0.1))
    for asked in requests:
        live.ask(asked)
    live.lose_router(goes / 100)
    live.run(LONG_S)
    assert [asked.name for asked in requests if asked.done_s < 0] == []
    rest = [r for name in models for r in live.conductor.requests.of(name)]
    assert rest == []


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(workloads(), st.sampled_from([0.3, 1.0, 3.0]))
def test_with_patience_a_request_is_served_or_given_up_in_time(
    policy: str, workload: tuple[int, dict[str, int], list[Asked]], patience_s: float
) -> None:
    pages, models, requests = workload
    live = Live(pages, models, policy, Goals(ttft_s=1.0, tbt_s=0.1), patience_s)
    for asked in requests:
        asked.announced = True
        live.ask(asked)
    live.run(LONG_S)
    for asked in requests:
        assert (asked.done_s < 0) == (asked.given_up_s >= 0)
        if asked.given_up_s >= 0:
            assert asked.first_s < 0, "what has a token is not given up"
            waited_s = asked.given_up_s - asked.at_s
            assert patience_s < waited_s < patience_s + 0.5
    assert list(differing(live.decided, POLICIES[policy])) == []


def test_what_has_no_turn_in_time_is_given_up_and_the_rest_goes_on() -> None:
    live = Live(2, {"a": 2, "b": 2}, "fcfs", Goals(), 0.5)
    first, second = Asked("requestone", "a", 0.0, 100), Asked("requesttwo", "b", 0.1, 10)
    third = Asked("requestthree", "a", 0.2, 10)
    for asked in (first, second, third):
        live.ask(asked)
    live.run(LONG_S)
    assert first.done_s > 3 and third.done_s > 0
    assert second.given_up_s == pytest.approx(0.6, abs=0.01)
    # Its engine, which waits for memory all the same, is what the policy may give up later.
    *_, why = [reason for _, reason in live.why().decisions if "given up" in reason]
    assert why.startswith("a request of b is given up: no turn in 0.5")
    given_up, *_ = [event for event in trace_events(live.decided) if event["ph"] == "i"]
    assert (given_up["name"], given_up["args"]["why"]) == ("given up: b", why)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("where", ["as it comes", "in a step"])
def test_an_engine_that_hangs_is_ended_and_the_others_go_on(policy: str, where: str) -> None:
    bench = Bench(policy=LivePolicy(policy))
    hangs, other = bench.worker("hangs", 3), bench.worker("other", 3)
    bench.tell(hangs, p.Working([(1, "a request", 5)]), p.Idle(False), p.Acquire())
    if where == "in a step":
        bench.tell(hangs, p.Arrived(SWAP), p.Working([], [(1, 1)]))
    bench.tell(other, p.Working([(1, "a request", 5)]), p.Idle(False), p.Acquire())
    while not hangs.kills:
        assert bench.wake_at_s is not None and bench.wake_at_s > bench.now_s
        bench.now_s = bench.wake_at_s
        bench.settle()
    assert REVOKE_S < bench.now_s < 3 * REVOKE_S
    hangs.exited, hangs.connected = True, False
    bench.lose(hangs)
    assert [type(message) for message in other.take()] == [p.Granted]
