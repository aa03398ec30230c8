"""A daemon's policy at work: a conductor, the leases of its models, and engines that always work.

Every model has the same number of requests, one model is there at a time, and whoever ends is
followed by another. Each look is timed, and counts as what came of it.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable

from gpupool.arbiter.leases import Lease
from gpupool.live import Conductor
from gpupool.schedule.recording import Decided
from gpupool.schedule.turns import Residency
from gpupool.schedule.work import Goals

TELL_S = 0.02
SWAP_S = 0.1


class Looks:
    """What an arbiter and engines would do, so far as a conductor learns of it."""

    def __init__(
        self,
        policy: str,
        models: int,
        requests: int,
        seed: int,
        *,
        patience_s: float | None = None,
        record: Callable[[Decided], None] | None = None,
    ) -> None:
        """All have their requests, and have asked for memory; time enough for most of them."""
        self.taken_us: dict[str, list[float]] = {}
        self._rng = random.Random(seed)
        self._now_s = 1000.0
        self._count = 0
        self._leases: dict[int, Lease] = {}
        self._tokens_left: dict[int, dict[int, int]] = {}
        self._made: dict[int, int] = {}
        self._here: int | None = None
        goals = Goals(60.0, models / 40)
        self._conductor = Conductor(
            self, policy, goals, turn_s=0.2, silent_s=30.0, patience_s=patience_s, record=record
        )
        for key in range(models):
            self._leases[key] = Lease(key, f"m{key}", 10, since_s=self._now_s, idle=False)
            self._leases[key].state = Residency.WAITING
            self._conductor.add(key, f"m{key}")
            self._conductor.tells(key, self._now_s)
            self._tokens_left[key] = {}
            for _ in range(requests):
                self._now_s += 1e-3
                self._begin(key)
        self._look()
        self.taken_us.clear()

    def lease(self, key: int) -> Lease:
        """The standing of one model."""
        return self._leases[key]

    def run(self, looks: int) -> None:
        """For so many looks that decide something."""
        gc.collect()
        until = looks + self.decided
        while self.decided < until:
            first = min(self._leases.values(), key=lambda lease: lease.rank).key
            if first == self._here:
                self._tell(first)
            else:
                self._swap(first)

    @property
    def decided(self) -> int:
        """Looks that decided something."""
        return sum(len(taken) for what, taken in self.taken_us.items() if what != "nothing")

    def _swap(self, key: int) -> None:
        if self._here is not None:
            self._enter(self._here, Residency.WAITING)
        self._here = key
        self._enter(key, Residency.RESIDENT)
        self._look()
        self._now_s += SWAP_S
        self._conductor.arrived(key, self._now_s)
        self._look()

    def _enter(self, key: int, state: Residency) -> None:
        lease = self._leases[key]
        lease.state, lease.since_s = state, self._now_s
        lease.held = lease.pages if state is Residency.RESIDENT else 0

    def _tell(self, key: int) -> None:
        """A step is over: each request has a token more, and those that end are followed."""
        self._now_s += TELL_S
        left = self._tokens_left[key]
        for number in left:
            left[number] -= 1
            self._made[number] += 1
        ended = [number for number, tokens in left.items() if tokens == 0]
        requests, name = self._conductor.requests, f"m{key}"
        self._conductor.tells(key, self._now_s)
        requests.produced(name, [(number, self._made[number]) for number in left])
        for number in ended:
            del left[number], self._made[number]
            requests.over("router", f"r{number}")
        requests.ended(name, ended)
        self._conductor.measured.stepped(key, 1, TELL_S)
        for _ in ended:
            self._begin(key)
        self._look()

    def _begin(self, key: int) -> None:
        self._count += 1
        number, tokens = self._count, self._rng.randint(10, 2000)
        requests = self._conductor.requests
        requests.announce("router", f"m{key}", f"r{number}", tokens, self._now_s)
        requests.began(f"m{key}", number, f"cmpl-r{number}-0", tokens, self._now_s)
        self._tokens_left[key][number] = self._rng.randint(20, 400)
        self._made[number] = 0

    def _look(self) -> None:
        (device,) = self._conductor.state.devices
        before = device.model, device.turn_ends_s
        placed = sum(batch.taken for batch in device.batches)
        began_ns = time.thread_time_ns()
        self._conductor.look(self._now_s)
        taken_us = (time.thread_time_ns() - began_ns) / 1e3
        if sum(batch.taken for batch in device.batches) > placed:
            what = "place"
        elif device.model != before[0]:
            what = "switch"
        else:
            what = "nothing" if device.turn_ends_s == before[1] else "turn"
        self.taken_us.setdefault(what, []).append(taken_us)
