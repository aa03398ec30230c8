"""A conductor over leases and a clock that are the test's."""

from __future__ import annotations

from gpupool.arbiter.leases import Lease
from gpupool.live import Conductor
from gpupool.schedule.turns import Residency
from gpupool.schedule.work import Goals

GOALS = Goals(ttft_s=1.0, tbt_s=0.1)
SILENT_S = 30.0


class Stage:
    """A conductor over leases that say what the test has them say."""

    def __init__(self, *names: str, policy: str = "deadlines") -> None:
        self.leases: dict[int, Lease] = {}
        self.conductor = Conductor(self, policy, GOALS, turn_s=0.2, silent_s=SILENT_S)
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
        self.conductor.arrived(key, self.now_s)
        self.look()

    def look(self, after_s: float = 0.0) -> float | None:
        self.now_s += after_s
        return self.conductor.look(self.now_s)

    def may_leave(self) -> set[int]:
        ends_s = {k: lease.turn_ends_s for k, lease in self.leases.items()}
        return {k for k, end_s in ends_s.items() if end_s is not None and end_s <= self.now_s}

    def first(self) -> int:
        return min(self.leases.values(), key=lambda lease: lease.rank).key
