"""What a conductor knows: requests by their names, goals, and what models cost."""

from __future__ import annotations

import pytest
from stage_bench import Stage

from gpupool.daemon.limits import COUNT_MAX
from gpupool.live import POLICIES
from gpupool.schedule.turns import Residency


def test_an_announced_request_becomes_the_engines() -> None:
    stage = Stage("a")
    requests = stage.conductor.requests
    requests.announce("router", "a", "abc", 7, 1.0)
    requests.announce("router", "a", "abc", 7, 2.0)  # a second time counts for nothing
    (announced,) = requests.of("a")
    requests.began("a", 1, "chatcmpl-abc-12345678", 9, 3.0)
    requests.began("a", 2, "1_chatcmpl-abc-12345678", 9, 3.0)
    assert requests.announced_as(announced, "a") == ("router", "abc")
    requests.began("a", 3, "chatcmpl-xyz-12345678", 9, 4.0)
    assert [r.arrival_s for r in requests.of("a")] == [1.0, 1.0, 4.0]
    assert requests.of("a")[0] is announced and announced.prompt_tokens == 9
    requests.produced("a", [(1, 5), (77, 3)])
    assert announced.produced_tokens == 5 and announced.prefilled
    requests.over("router", "abc")  # its engine has the last word
    assert len(requests.of("a")) == 3
    requests.ended("a", [1, 2, 3, 99])
    assert requests.of("a") == []


def test_goals_and_weights_are_the_policys() -> None:
    """Of two that wait, the one whose goal is nearer is first; with both late, the heavier."""
    for goals, first in (({2: 0.5, 3: 5.0}, 2), ({2: 5.0, 3: 0.5}, 3)):
        stage = Stage("a", "b", "c")
        for key, ttft_s in goals.items():
            stage.conductor.set_goals(key, ttft_s, None)
        stage.come(1)
        for key in (2, 3):
            stage.announce(key)
            stage.enter(key, Residency.WAITING)
        stage.look()
        ranks = {key: stage.leases[key].rank for key in (2, 3)}
        assert min(ranks, key=lambda key: ranks[key]) == first
    for heavy in (2, 3):
        stage = Stage("a", "b", "c")
        stage.conductor.set_goals(heavy, None, None, 50.0)
        stage.come(1)
        for key in (2, 3):
            stage.announce(key)
            stage.enter(key, Residency.WAITING)
        stage.look()
        stage.look(20.0)
        assert stage.first() == heavy


def test_costs_are_what_was_measured() -> None:
    stage = Stage("a")
    measured = stage.conductor.measured
    before = measured.costs[1]
    measured.swapped(1, 5.0, 0.01)  # too little of the model to say anything
    assert measured.costs[1] == before
    measured.swapped(1, 0.3, 0.5)
    measured.stepped(1, 10, 0.4)
    measured.prefilled(1, 100, 0.2)
    costs = measured.costs[1]
    assert costs.switch_s == pytest.approx(0.6)
    assert costs.step(1000, 5) == pytest.approx(0.04)
    assert costs.prefill([50]) == pytest.approx(0.1)
    for _ in range(100):
        measured.stepped(1, 1, 0.01)
    assert measured.costs[1].step(1, 1) == pytest.approx(0.01)
    measured.stepped(1, 0, 9.0)
    assert measured.costs[1].step(1, 1) == pytest.approx(0.01)
    measured.stepped(1, 1, 0.06)
    assert measured.costs[1].step(1, 1) == pytest.approx(0.02), "one that is far off counts a fifth"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_prompt_is_too_long_for_a_policy(policy: str) -> None:
    """Its engine says what it cannot take: whatever the protocol lets anybody tell gets a turn."""
    stage = Stage("a", "b", policy=policy)
    for number in range(2):
        stage.announce(1, f"request {number}", tokens=COUNT_MAX)
    stage.enter(1, Residency.WAITING)
    stage.look()
    assert stage.first() == 1
    stage.enter(1, Residency.RESIDENT)
    stage.conductor.arrived(1, stage.now_s)
    stage.look()
    (device,) = stage.conductor.state.devices
    assert device.current is not None and len(device.current.requests) == 2
