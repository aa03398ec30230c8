"""What a gate takes its model for after an error, and who waits for one that is torn to leave."""

from __future__ import annotations

import pytest
from gate_bench import (
    PATIENCE_S,
    FakeModel,
    gate_of,
    revoke_is_waiting,
    thread_running,
    wait_until,
)

from gpupool.errors import DriverError
from gpupool.gate import Gate
from gpupool.residency import Ahead


class Scripted(FakeModel):
    """Torn, and does not come at once; nobody who waits looks before the next attempt has begun."""

    def __init__(self, ends: str) -> None:
        super().__init__()
        self.ends = ends
        self.torn = True
        self.gate: Gate
        self.looks = 0
        self.results: list[object] = []
        self.attempts = 0

    def is_stale(self) -> bool:
        self.looks += 1
        return self.resident  # as another lease than was revoked

    def bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> None:
        self.attempts += 1
        if self.attempts == 1:
            wait_until(lambda: revoke_is_waiting(self.gate))
            self.gate._changed.acquire()
            raise DriverError("not saved", "synchronize", 999)
        looks = self.looks
        self.gate._changed.release()
        wait_until(lambda: bool(self.results) or self.looks > looks + 1)
        self.torn = self.ends == "torn"
        if self.ends != "comes":
            raise DriverError("not saved", "synchronize", 999)
        super().bring_in(timeout_s, ahead)

    def give_up(self, keep: int = 0, park_s: float | None = None) -> None:
        self.torn = False
        super().give_up(keep, park_s)


@pytest.mark.parametrize(
    ("ends", "gives_up", "calls"),
    [("torn", True, ["out"]), ("comes", False, ["in"]), ("out", False, [])],
)
def test_who_waits_for_a_torn_model_waits_while_attempts_to_bring_it_in_fail(
    ends: str, gives_up: bool, calls: list[str]
) -> None:
    model = Scripted(ends)
    model.gate = gate = gate_of(model)
    gate._see_whether_torn()

    def attempt() -> None:
        for _ in range(2):
            try:
                gate.open_step()
            except DriverError:
                continue
            wait_until(lambda: bool(model.results))
            gate.close_step()

    with thread_running(attempt):
        wait_until(lambda: model.attempts == 1)
        with thread_running(lambda: gate.give_up(None, model.is_stale)) as model.results:
            pass
    assert model.results == [gives_up]
    assert model.calls == calls


def test_a_revoke_of_what_a_torn_model_comes_to_waits_for_its_step() -> None:
    model, looks = FakeModel(), 0
    gate = gate_of(model)
    model.torn = True
    gate._see_whether_torn()
    model.may_finish.clear()

    def is_stale() -> bool:
        nonlocal looks
        looks += 1
        return False

    def step() -> None:
        with gate.hold():
            model.torn, looked = False, looks
            wait_until(lambda: bool(results) or looks > looked + 1)

    with thread_running(step):
        assert model.inside.acquire(timeout=PATIENCE_S)
        with thread_running(lambda: gate.give_up(None, is_stale)) as results:
            wait_until(lambda: revoke_is_waiting(gate))
            model.may_finish.set()
    assert results == [True]
    assert model.calls == ["in", "out"]


def test_after_an_error_a_model_is_where_its_memory_is() -> None:
    model = FakeModel()
    gate = gate_of(model)
    with gate.hold():
        pass
    model.error, model.resident = DriverError("late", "unmap", 999), False
    with pytest.raises(DriverError):
        gate.give_up()
    assert not gate.is_resident
    model.resident = True
    with pytest.raises(DriverError):
        gate.open_step()
    assert gate.is_resident
