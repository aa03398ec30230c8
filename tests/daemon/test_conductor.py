"""What a conductor orders: leases and clock are the test's."""

from __future__ import annotations

from math import inf

import pytest
from conducted_bench import Asked, Live
from hypothesis import given
from hypothesis import strategies as st

from gpupool.leases import Lease
from gpupool.live import Conductor
from gpupool.schedule.turns import Residency
from gpupool.schedule.work import Goals

GOALS = Goals(ttft_s=1.0, tbt_s=0.1)


class Stage:
    """A conductor over leases that say what the test has them say."""

    def __init__(self, *names: str, policy: str = "deadlines") -> None:
        self.leases: dict[int, Lease] = {}
        self.conductor = Conductor(self, policy, GOALS, turn_s=0.2)
        for key, name in enumerate(names, 1):
            self.leases[key] = Lease(key, name, pages=2)
            self.conductor.add(key, name)
        self.now_s = 10.0

    def lease(self, key: int) -> Lease:
        return self.leases[key]

    def enter(self, key: int, state: Residency) -> None:
        lease = self.leases[key]
        lease.state, lease.since_s = state, self.now_s
        lease.idle = False
        lease.held = lease.pages if state is Residency.RESIDENT else 0

    def announce(self, key: int, request_id: str = "", tokens: int = 10) -> None:
        name = self.leases[key].name
        requests = self.conductor.requests
        requests.announce(self, name, request_id or f"request of {name}", tokens, self.now_s)

    def come(self, key: int) -> None:
        """Its request is announced, its engine asks, gets its pages, and has come."""
        self.announce(key)
        self.enter(key, Residency.WAITING)
        self.look()
        self.enter(key, Residency.RESIDENT)
        self.conductor.arrived(key)
        self.look()

    def look(self, after_s: float = 0.0) -> float | None:
        self.now_s += after_s
        return self.conductor.look(self.now_s)

    def may_leave(self) -> set[int]:
        return {k for k, lease in self.leases.items() if lease.turn_ends_s != inf}

    def first(self) -> int:
        return min(self.leases.values(), key=lambda lease: lease.rank).key


def test_nobody_leaves_while_a_turn_lasts() -> None:
    stage = Stage("a", "b")
    stage.come(1)
    stage.announce(2)
    stage.enter(2, Residency.WAITING)
    stage.look()
    assert stage.may_leave() == set()
    assert stage.first() == 1


def test_for_a_switch_all_others_may_leave() -> None:
    stage = Stage("a", "b", "c")
    stage.come(1)
    stage.come(3)
    stage.announce(2)
    stage.enter(2, Residency.WAITING)
    while stage.first() != 2:
        assert stage.may_leave() == set()
        at_s = stage.look()
        assert at_s is not None and at_s > stage.now_s
        stage.now_s = at_s
        stage.look()
    assert stage.may_leave() == {1, 3}


def test_who_has_begun_with_pages_goes_on_first() -> None:
    """Else two could each hold what the other waits for."""
    stage = Stage("a", "b")
    for key in (1, 2):
        stage.announce(key)
        stage.enter(key, Residency.WAITING)
    stage.look()
    other = 3 - stage.first()
    stage.leases[other].begun = 1
    stage.look()
    assert stage.first() == other


@pytest.mark.parametrize("how", ["over", "cancelled", "gone"])
def test_a_switch_to_a_model_without_work_any_more_is_off(how: str) -> None:
    stage = Stage("a", "b", "c")
    stage.come(1)
    stage.announce(2)
    stage.enter(2, Residency.WAITING)
    stage.look()
    stage.look(5.0)  # its first token is late
    assert stage.first() == 2
    if how == "over":
        stage.conductor.tells(2)
        stage.conductor.requests.over(stage, "request of b")
        stage.enter(2, Residency.OUT)
    elif how == "cancelled":  # its engine gave up, and does not ask again
        stage.enter(2, Residency.OUT)
        at_s = stage.look()
        assert at_s is not None and at_s < stage.now_s + 1
        stage.now_s = at_s
    else:
        stage.conductor.forget(2)
        del stage.leases[2]
    stage.look()
    assert stage.may_leave() == set()
    stage.announce(3)
    stage.enter(3, Residency.WAITING)
    stage.look(5.0)
    assert stage.first() == 3


def test_a_model_that_leaves_by_itself_is_not_taken_for_running() -> None:
    stage = Stage("a")
    stage.come(1)
    stage.enter(1, Residency.LEAVING)
    stage.look()
    assert stage.conductor.state.devices[0].model is None or stage.first() == 1
    assert stage.may_leave() == set()


def test_work_that_nobody_tells_of_is_due_after_a_turn() -> None:
    stage = Stage("a", "b")
    stage.come(1)
    for _ in range(3):
        stage.look(0.05)
    stage.enter(2, Residency.WAITING)
    stage.look()
    stage.look(0.3)
    assert stage.first() == 2


def test_an_engine_that_tells_has_nothing_to_do_without_requests() -> None:
    stage = Stage("a")
    stage.come(1)
    stage.conductor.tells(1)
    stage.conductor.requests.over(stage, "request of a")
    stage.look()
    assert stage.conductor.state.devices[0].batches == []


def test_a_new_engine_has_nothing_of_the_old_ones() -> None:
    stage = Stage("a")
    stage.conductor.requests.began("a", 1, "cmpl-x", 10, stage.now_s)
    assert len(stage.conductor.requests.of("a")) == 1
    stage.conductor.forget(1)
    assert stage.conductor.requests.of("a") == []


def test_an_announced_request_becomes_the_engines() -> None:
    stage = Stage("a")
    requests = stage.conductor.requests
    requests.announce("router", "a", "abc", 7, 1.0)
    requests.announce("router", "a", "abc", 7, 2.0)  # a second time counts for nothing
    (announced,) = requests.of("a")
    requests.began("a", 1, "chatcmpl-abc-12345678", 9, 3.0)
    requests.began("a", 2, "1_chatcmpl-abc-12345678", 9, 3.0)
    requests.began("a", 3, "chatcmpl-xyz-12345678", 9, 4.0)
    assert [r.arrival_s for r in requests.of("a")] == [1.0, 1.0, 4.0]
    assert requests.of("a")[0] is announced and announced.prompt_tokens == 9
    requests.produced("a", [(1, 5), (77, 3)])
    assert announced.produced_tokens == 5 and announced.prefilled
    requests.over("router", "abc")  # its engine has the last word
    assert len(requests.of("a")) == 3
    requests.ended("a", [1, 2, 3, 99])
    assert requests.of("a") == []


@given(st.permutations("abcd"), st.integers(0, 3))
def test_whoever_a_device_switches_to_is_who_comes(order: list[str], gap: int) -> None:
    """With room for one, in whatever order they asked."""
    live = Live(2, dict.fromkeys("abcd", 2), "deadlines", GOALS)
    for k, name in enumerate(order):
        live.ask(Asked(f"request-of-{name}", name, 0.1 * gap * k, 20 + 10 * k))
    live.run(600.0)
    names = {key: name for name in "abcd" for key in [live.bench.key_of(name)]}
    targets = [
        names[decided.state["batches"][action[2]][0]]
        for decided in live.decided
        for action in decided.actions
        if action[0] == "Switch"
    ]
    here = ""
    expected = [here := name for name in targets if name != here]
    assert live.swap_ins == expected
