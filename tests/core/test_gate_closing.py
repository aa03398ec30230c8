"""A gate that closes for good, whoever comes at the same time."""

from __future__ import annotations

import pytest
from gate_bench import PATIENCE_S, FakeModel, gate_of, revoke_is_waiting, thread_running, wait_until

from gpupool.errors import DriverError, UsageError


def test_closing_and_leaving_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody comes in between, to read what was not kept."""
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold():
        pass
    left: list[str] = []
    monkeypatch.setattr(model, "give_up", lambda: left.append("kept"))
    monkeypatch.setattr(model, "leave_for_good", lambda: left.append("for good"))
    assert gate.close() is True
    assert left == ["for good"]
    assert gate._state.value == "closed"


def test_nobody_comes_through_a_closed_gate() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold(), pytest.raises(UsageError):
        gate.close()
    assert gate.close() is True
    assert gate.close() is False
    assert gate.give_up() is False
    with pytest.raises(UsageError, match="closed"):
        gate.open_step()
    with pytest.raises(UsageError, match="closed"), gate.steady():
        pass
    assert model.calls == ["in", "out"]


def test_a_step_that_waits_for_a_gate_that_closes_is_refused() -> None:
    model = FakeModel()
    gate = gate_of(model)
    gate.open_step()
    refused: list[bool] = []

    def late() -> bool:
        try:
            gate.open_step()
        except UsageError:
            refused.append(True)
            return True
        gate.close_step()
        return False

    with thread_running(gate.close):
        wait_until(lambda: revoke_is_waiting(gate))
        model.may_finish.clear()
        gate.close_step()
        assert model.inside.acquire(timeout=PATIENCE_S)
        with thread_running(late):
            model.may_finish.set()
    assert gate.close() is False
    assert refused == [True] or model.calls == ["in", "out", "in", "out"]


def test_a_gate_that_could_not_close_is_open() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold():
        pass
    model.error = DriverError("unmap failed", "unmap", 999)
    with pytest.raises(DriverError):
        gate.close()
    model.error = None
    with gate.hold():
        pass
    assert gate.close() is True
