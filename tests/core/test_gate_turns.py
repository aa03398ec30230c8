"""How long a turn is: steps, pauses and idleness, on a clock that moves when the test says so."""

from __future__ import annotations

from gate_bench import Clock, FakeModel, gate_of, revoke_is_waiting, thread_running, wait_until

from gpupool.gate import Gate


def busy_gate(model: FakeModel, clock: Clock) -> Gate:
    gate = gate_of(model, min_steps=3, pause_s=5.0, clock=clock)
    gate.set_idle(False)
    gate.open_step()
    gate.close_step()
    return gate


def test_a_turn_has_its_steps() -> None:
    model, clock = FakeModel(), Clock()
    gate = busy_gate(model, clock)
    with thread_running(gate.give_up) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        for _ in range(2):
            assert model.calls == ["in"]
            gate.open_step()
            gate.close_step()
    assert results == [True]


def test_steps_that_do_not_count_make_no_turn() -> None:
    model, clock = FakeModel(), Clock()
    gate = busy_gate(model, clock)
    for _ in range(5):
        with gate.hold():
            pass
    with thread_running(gate.give_up):
        wait_until(lambda: revoke_is_waiting(gate))
        with gate.hold():
            assert model.calls == ["in"]
        for _ in range(2):
            gate.open_step()
            gate.close_step()
    assert model.calls == ["in", "out"]


def test_a_paused_model_leaves_before_its_turn_is_over() -> None:
    model, clock = FakeModel(), Clock()
    gate = busy_gate(model, clock)
    clock.now_s += 4.9
    with thread_running(lambda: gate.give_up(timeout_s=4.0)) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        assert model.calls == ["in"]
        clock.now_s += 0.2
    assert results == [True]


def test_an_idle_model_leaves_at_once() -> None:
    model, clock = FakeModel(), Clock()
    gate = busy_gate(model, clock)
    with thread_running(gate.give_up) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        gate.set_idle(True)
        gate.set_idle(True)
    assert results == [True]
    assert model.idle == [False, True]  # passed on when it changes


def test_every_turn_counts_its_own_steps() -> None:
    model, clock = FakeModel(), Clock()
    gate = busy_gate(model, clock)
    for _ in range(2):
        gate.open_step()
        gate.close_step()
    assert gate.give_up() is True
    gate.open_step()
    gate.close_step()
    with thread_running(gate.give_up) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        for _ in range(2):
            assert model.calls == ["in", "out", "in"]
            gate.open_step()
            gate.close_step()
    assert results == [True]


def test_a_turn_is_cut_short_when_half_of_the_deadline_is_gone() -> None:
    model, clock = FakeModel(), Clock()
    gate = busy_gate(model, clock)
    with thread_running(lambda: gate.give_up(timeout_s=4.0)) as results:
        wait_until(lambda: revoke_is_waiting(gate))
        gate.open_step()
        clock.now_s += 1.9
        gate.close_step()
        assert model.calls == ["in"]
        gate.open_step()
        clock.now_s += 0.2
        gate.close_step()
    assert results == [True]
    assert gate._turn.hurry_at_s == float("inf")
