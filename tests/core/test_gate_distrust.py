"""No step begins on memory that is known to be wrong, whoever else wants what of it."""

from __future__ import annotations

import threading

import pytest
from gate_bench import PATIENCE_S, FakeModel, gate_of, revoke_is_waiting, thread_running, wait_until


def test_the_next_step_has_it_leave_and_come_back() -> None:
    model = FakeModel()
    gate = gate_of(model, min_steps=9)
    gate.set_idle(False)
    with gate.hold():
        gate.distrust()
        with gate.hold():  # part of the step that is open
            assert model.calls == ["in"]
    assert model.calls == ["in"]
    for _ in range(2):
        with gate.hold():
            assert model.calls == ["in", "out", "in"]
    assert model.kept == 0


def test_a_step_of_another_thread_waits_for_the_one_that_is_open() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    gate.distrust()
    began = threading.Event()

    def step() -> None:
        with gate.hold():
            began.set()

    with thread_running(step):
        assert not began.wait(0.05)  # a gate that lets it in does so at once
        assert model.calls == ["in"]
        gate.close_step()
        assert began.wait(PATIENCE_S)
    assert model.calls == ["in", "out", "in"]


def test_what_is_found_while_it_comes_sends_it_back_before_its_step() -> None:
    model = FakeModel()
    gate = gate_of(model)
    model.may_finish.clear()

    def step() -> list[str]:
        with gate.hold():
            return list(model.calls)

    with thread_running(step) as results:
        assert model.inside.acquire(timeout=PATIENCE_S)
        gate.distrust()
        model.may_finish.set()
    assert results == [["in", "out", "in"]]


def test_a_revoke_does_not_wait_for_the_turn_and_keeps_nothing() -> None:
    model = FakeModel()
    gate = gate_of(model, min_steps=9, pause_s=1e6)
    gate.set_idle(False)
    gate.open_step()
    with thread_running(lambda: gate.give_up(PATIENCE_S, lambda: False, 5)) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        gate.distrust()
        gate.close_step()
    assert (results, model.kept, model.calls) == ([True], 0, ["in", "out"])


def test_of_memory_that_is_out_it_says_nothing() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.distrust()
    with gate.hold():
        assert model.calls == ["in"]


def test_memory_that_cannot_be_given_up_serves_no_step() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold():
        gate.distrust()
    model.error = RuntimeError("full")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="full"), gate.hold():
            raise AssertionError
    model.error = None
    with gate.hold():
        assert model.calls == ["in", "out", "in"]
