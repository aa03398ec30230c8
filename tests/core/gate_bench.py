"""A model for the gate that does as the test says, a clock, and threads beside the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpupool.gate import Gate
from gpupool.residency import Ahead

PATIENCE_S = 20.0


class FakeModel:
    """Comes and goes at once, unless told to fail or to wait."""

    resident = torn = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.idle: list[bool] = []
        self.ahead: Ahead | None = None
        self.kept = 0
        self.error: Exception | None = None
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.inside = threading.Semaphore(0)

    def bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> None:
        self.ahead = ahead
        self._do("in")
        self.resident = True

    def give_up(self, keep: int = 0, park_s: float | None = None) -> None:
        self.kept = keep
        self._do("out")
        self.resident = False

    def hurry(self) -> None:
        self.calls.append("hurry")

    def cool(self, pages: int) -> None:
        self.calls.append(f"cool {pages}")

    def leave_for_good(self) -> None:
        self._do("out")
        self.resident = False

    def set_idle(self, idle: bool) -> None:
        self.idle.append(idle)

    def _do(self, call: str) -> None:
        self.inside.release()
        assert self.may_finish.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.calls.append(call)


class Clock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Longer:
    """By how much a timeout is put off: what the test says."""

    def __init__(self) -> None:
        self.by_s = 0.0
        self._looks = threading.Semaphore(0)

    def __call__(self) -> float:
        self._looks.release()
        return self.by_s

    def seen(self, times: int = 2) -> None:
        """Whoever waits has looked at it, and waits on."""
        while self._looks.acquire(blocking=False):
            pass
        for _ in range(times):
            assert self._looks.acquire(timeout=PATIENCE_S)


def gate_of(model: FakeModel, **settings: object) -> Gate:
    return Gate(model, **({"lease_timeout_s": PATIENCE_S} | settings))  # type: ignore[arg-type]


@contextmanager
def thread_running(work: Callable[[], object]) -> Iterator[list[object]]:
    """Run ``work`` beside the block; what it returned or raised is in the list afterwards."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def revoke_is_waiting(gate: Gate) -> bool:
    return gate._revokes.count > 0
