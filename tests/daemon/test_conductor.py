"""What a conductor orders: leases and clock are the test's."""

from __future__ import annotations

import pytest
from conducted_bench import Asked, Live
from hypothesis import given
from hypothesis import strategies as st
from stage_bench import GOALS, SILENT_S, Stage

from gpupool.schedule.turns import Residency


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
        stage.conductor.tells(2, stage.now_s)
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
    stage.conductor.tells(1, stage.now_s)
    stage.conductor.requests.over(stage, "request of a")
    stage.look()
    assert stage.conductor.state.devices[0].batches == []


def test_a_new_engine_has_nothing_of_the_old_ones() -> None:
    stage = Stage("a")
    stage.conductor.requests.began("a", 1, "cmpl-x", 10, stage.now_s)
    assert len(stage.conductor.requests.of("a")) == 1
    stage.conductor.forget(1)
    assert stage.conductor.requests.of("a") == []


@given(st.permutations("abcd"), st.integers(0, 3))
def test_whoever_a_device_switches_to_is_who_comes(order: list[str], gap: int) -> None:
    """With room for one, in whatever order they asked."""
    live = Live(2, dict.fromkeys("abcd", 2), "deadlines", GOALS)
    for k, name in enumerate(order):
        live.ask(Asked(f"request{name}", name, 0.1 * gap * k, 20 + 10 * k))
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


def test_a_model_that_is_not_heard_of_may_be_made_to_leave() -> None:
    """As it comes, for it may never; and in a turn that has no end, for its engine may hang."""
    stage = Stage("a", "b", policy="fcfs")
    stage.announce(1)
    stage.enter(1, Residency.WAITING)
    stage.look()
    stage.enter(1, Residency.RESIDENT)  # granted, and it says nothing
    stage.announce(2)
    stage.enter(2, Residency.WAITING)
    stage.look(SILENT_S - 1)
    assert stage.may_leave() == {2}
    stage.look(1.0)
    assert stage.may_leave() == {1, 2}
    stage.conductor.arrived(1, stage.now_s)
    stage.look()
    assert 1 not in stage.may_leave()
    stage.look(SILENT_S - 1)
    stage.conductor.tells(1, stage.now_s)
    stage.look(2.0)
    assert 1 not in stage.may_leave()
    stage.look(SILENT_S)
    assert 1 in stage.may_leave()


def test_a_model_that_could_not_leave_is_there_still() -> None:
    stage = Stage("a", "b")
    stage.come(1)
    stage.enter(1, Residency.LEAVING)
    stage.look()
    stage.enter(1, Residency.RESIDENT)  # it said that it stays
    stage.announce(2)
    stage.enter(2, Residency.WAITING)
    stage.look()
    stage.look(0.1)
    assert stage.may_leave() == set(), "nobody waits for it to come"


def test_a_model_whose_request_is_on_its_way_is_not_idle() -> None:
    stage = Stage("a")
    stage.come(1)
    stage.conductor.requests.over(stage, "request of a")
    stage.leases[1].idle = True
    stage.look(1.0)
    assert not stage.leases[1].expected
    stage.announce(1, "another")
    stage.look()
    assert stage.leases[1].expected
    stage.look(0.3)
    assert not stage.leases[1].expected, "it never came"


def test_what_is_asked_for_ahead_is_no_work() -> None:
    stage = Stage("a", "b")
    stage.come(1)
    stage.enter(2, Residency.WAITING)
    stage.leases[2].ahead = True
    stage.look()
    assert [batch.model for batch in stage.conductor.state.devices[0].batches] == [1]
    stage.leases[2].ahead = False
    stage.look()
    assert [batch.model for batch in stage.conductor.state.devices[0].batches] == [1, 2]
