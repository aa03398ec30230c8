"""The gate, with a model that does as the test says."""

from __future__ import annotations

import pytest
from gate_bench import (
    PATIENCE_S,
    Clock,
    FakeModel,
    Longer,
    gate_of,
    revoke_is_waiting,
    thread_running,
    wait_until,
)

from gpupool.errors import DriverError, LeaseTimeoutError, UsageError


def test_a_step_brings_the_model_in_and_keeps_it() -> None:
    model = FakeModel()
    gate = gate_of(model)
    assert not gate.is_resident
    with gate.hold():
        assert gate.is_resident
    with gate.hold():
        pass
    assert gate.is_resident
    assert model.calls == ["in"]


def test_a_model_that_is_out_has_nothing_to_give_up() -> None:
    model = FakeModel()
    assert gate_of(model).give_up() is False
    assert model.calls == []


def test_a_revoke_waits_for_the_open_step() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    with thread_running(gate.give_up) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        assert model.calls == ["in"]
        gate.close_step()
    assert results == [True]
    assert model.calls == ["in", "out"]


def test_a_step_in_progress_may_open_another_under_a_revoke() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    with thread_running(gate.give_up):
        wait_until(lambda: revoke_is_waiting(gate))
        with gate.hold(timeout_s=5.0):
            assert model.calls == ["in"]
        gate.close_step()
    assert model.calls == ["in", "out"]


def test_threads_whose_steps_overlap_do_not_keep_a_model_for_ever() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()

    def overlap() -> list[str]:
        with gate.hold():
            return list(model.calls)

    with thread_running(gate.give_up):
        wait_until(lambda: revoke_is_waiting(gate))
        with thread_running(overlap) as results:
            gate.close_step()
    assert results == [["in", "out", "in"]]


def test_a_new_step_under_a_revoke_finds_the_model_out_and_brings_it_in() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    assert model.inside.acquire(timeout=PATIENCE_S)
    model.may_finish.clear()
    with thread_running(gate.give_up):
        wait_until(lambda: revoke_is_waiting(gate))
        gate.close_step()
        assert model.inside.acquire(timeout=PATIENCE_S)  # it is leaving
        with thread_running(gate.open_step):
            model.may_finish.set()
        gate.close_step()
    assert model.calls == ["in", "out", "in"]


def test_give_up_keeps_its_deadline() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    with thread_running(lambda: gate.give_up(timeout_s=0.01)) as results:
        pass
    assert isinstance(results[0], LeaseTimeoutError)
    gate.close_step()
    with gate.hold():  # as if nobody had asked
        assert model.calls == ["in"]


def test_a_deadline_may_be_put_off_and_back_while_it_is_waited_for() -> None:
    model, clock = FakeModel(), Clock()
    gate = gate_of(model, clock=clock)
    gate.open_step()
    longer_s = Longer()
    with thread_running(lambda: gate.give_up(10.0, lambda: False, longer_s=longer_s)) as results:
        longer_s.seen()
        longer_s.by_s = 90.0
        clock.now_s += 50.0
        longer_s.seen()
        assert results == []
        longer_s.by_s = 30.0
    assert isinstance(results[0], LeaseTimeoutError)
    gate.close_step()
    with gate.hold():
        assert model.calls == ["in"]


def test_a_step_keeps_its_deadline() -> None:
    model = FakeModel()
    gate = gate_of(model)
    model.may_finish.clear()
    with thread_running(gate.open_step) as results:
        assert model.inside.acquire(timeout=PATIENCE_S)
        with pytest.raises(LeaseTimeoutError, match="arriving"):
            gate.open_step(timeout_s=0.01)
        model.may_finish.set()
    assert results == [None]
    gate.close_step()
    with pytest.raises(UsageError):
        gate.close_step()


def test_a_failing_bring_in_leaves_it_out() -> None:
    model = FakeModel()
    gate = gate_of(model)
    model.error = DriverError("map failed", "map", 2)
    for _ in range(2):
        with pytest.raises(DriverError):
            gate.open_step()
        assert not gate.is_resident
        with pytest.raises(UsageError):
            gate.close_step()
    model.error = None
    with gate.hold():
        assert gate.is_resident


def test_a_failing_give_up_leaves_it_resident() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold():
        pass
    model.error = DriverError("unmap failed", "unmap", 999)
    with pytest.raises(DriverError):
        gate.give_up()
    assert gate.is_resident
    model.error = None
    with gate.hold(timeout_s=1.0):
        pass
    assert gate.give_up() is True
    assert model.calls == ["in", "out"]


def test_a_torn_model_lets_nobody_in_before_it_is_brought_in_anew() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold():
        pass
    model.error = DriverError("unmap failed", "unmap", 999)
    model.torn = True
    with pytest.raises(DriverError):
        gate.give_up()
    assert not gate.is_resident
    with pytest.raises(DriverError):
        gate.open_step()
    model.error, model.torn = None, False
    with gate.hold():
        assert gate.is_resident
    assert model.calls == ["in", "in"]


def test_a_torn_model_can_be_given_up() -> None:
    model = FakeModel()
    gate = gate_of(model)
    model.error, model.torn = DriverError("map failed", "map", 999), True
    with pytest.raises(DriverError):
        gate.open_step()
    with pytest.raises(DriverError):
        gate.give_up()
    model.error, model.torn = None, False
    assert gate.give_up() is True
    assert gate.give_up() is False
    assert model.calls == ["out"]


def test_a_thread_cannot_give_up_in_its_own_step() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold(), pytest.raises(UsageError, match="in whose step it is"):
        gate.give_up()
    assert gate.give_up() is True


def test_another_thread_may_close_a_step() -> None:
    gate = gate_of(FakeModel())
    gate.open_step()
    with thread_running(gate.close_step) as results:
        pass
    assert results == [None]
    assert gate.give_up() is True  # this thread holds nothing any more


def test_two_revokes_at_once_give_up_once() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    with thread_running(gate.give_up) as first, thread_running(gate.give_up) as second:
        wait_until(lambda: gate._revokes.count == 2)
        gate.close_step()
    assert sorted([*first, *second]) == [False, True]  # type: ignore[type-var]
    assert model.calls == ["in", "out"]
    assert not gate.is_resident


def test_give_up_waits_for_another_threads_give_up() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold():
        pass
    assert model.inside.acquire(timeout=PATIENCE_S)
    model.may_finish.clear()
    with thread_running(gate.give_up) as first:
        assert model.inside.acquire(timeout=PATIENCE_S)
        with pytest.raises(LeaseTimeoutError):
            gate.give_up(timeout_s=0.01)  # it has not left yet
        model.may_finish.set()
    assert first == [True]
    assert gate.give_up() is False


def test_a_revoke_that_runs_out_of_time_leaves_the_other_one_waiting() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    with thread_running(gate.give_up) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        with thread_running(lambda: gate.give_up(timeout_s=0.01)) as late:
            pass
        assert isinstance(late[0], LeaseTimeoutError)
        assert revoke_is_waiting(gate)
        gate.close_step()
    assert results == [True]


def test_the_step_that_brings_a_model_in_goes_before_a_waiting_revoke() -> None:
    model = FakeModel()
    gate = gate_of(model)
    model.may_finish.clear()
    with thread_running(gate.give_up) as early:
        pass
    assert early == [False]
    with thread_running(gate.open_step) as opened:
        assert model.inside.acquire(timeout=PATIENCE_S)
        revoked_in = thread_running(gate.give_up)
        revoked = revoked_in.__enter__()
        wait_until(lambda: revoke_is_waiting(gate))
        model.may_finish.set()
    assert opened == [None]
    assert model.calls == ["in"]  # its step is open: the revoke waits
    gate.close_step()
    revoked_in.__exit__(None, None, None)
    assert revoked == [True]
