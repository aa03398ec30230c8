"""Gates of ranks in this process, a real leader between them, and memory that does as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpupool.errors import SwapCancelledError
from gpupool.gang.gate import GangGate
from gpupool.gang.member import Member
from gpupool.gang.serving import LeaderThread
from gpupool.residency import Ahead

PATIENCE_S = 20.0
FOR_EVER_S = 1000.0  # longer than any test may take


class Memory:
    """Comes and goes at once, unless it is told to fail."""

    def __init__(self) -> None:
        self.resident = self.torn = False
        self.fails_to_come: Exception | None = None
        self.fails_to_go: Exception | None = None
        self.kept: list[int] = []
        self.granted: Callable[[], None] = lambda: None
        self.is_wanted: Callable[[], bool] = lambda: True
        self.has_lease = threading.Event()
        self.has_lease.set()
        self.may_come = threading.Event()
        self.may_come.set()

    def bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> None:
        if self.fails_to_come is not None:
            raise self.fails_to_come
        while not self.has_lease.wait(0.001):
            if not self.is_wanted():
                raise SwapCancelledError("test")
        self.granted()
        assert self.may_come.wait(PATIENCE_S)
        self.resident = True

    def give_up(self, keep: int = 0, park_s: float | None = None) -> None:
        if self.fails_to_go is not None:
            raise self.fails_to_go
        self.kept.append(keep)
        self.resident = self.torn = False

    def cool(self, pages: int) -> None:
        self.torn = True

    def leave_for_good(self) -> None:
        self.give_up()

    def set_idle(self, idle: bool) -> None:
        """Nobody wants to know."""


class Ranks:
    """All of one engine."""

    def __init__(self, path: Path, ranks: int, **more: Any) -> None:
        self._leader = LeaderThread(path, ranks)
        self.members = [Member(path, rank, ranks, PATIENCE_S) for rank in range(ranks)]
        self.memories = [Memory() for _ in range(ranks)]
        self.gates = []
        for memory, member in zip(self.memories, self.members, strict=True):
            memory.granted, memory.is_wanted = member.granted, member.is_wanted
            settings = {"lease_timeout_s": FOR_EVER_S} | more
            self.gates.append(GangGate(memory, member=member, **settings))
        self._threads = ThreadPoolExecutor(4 * ranks)
        self.clock: Any = more.get("clock")

    def beside(self, work: Callable[[], object]) -> Future[object]:
        """Do something on another thread."""
        return self._threads.submit(work)

    def all_at_once(self, work: Callable[[GangGate], object]) -> list[BaseException | None]:
        """Do the same in all ranks; what each ended with."""
        futures = [self._threads.submit(work, gate) for gate in self.gates]
        return [future.exception(PATIENCE_S) for future in futures]

    def step(self) -> None:
        """One that all have."""

        def step(gate: GangGate) -> None:
            gate.open_step()
            gate.close_step()

        assert set(self.all_at_once(step)) == {None}

    def close(self) -> None:
        for memory in self.memories:
            memory.fails_to_go = None
        assert set(self.all_at_once(GangGate.close)) == {None}
        for member in self.members:
            member.close()
        self._leader.close()
        self._threads.shutdown()
        assert not any(memory.resident for memory in self.memories)


@contextmanager
def ranks_of(path: Path, ranks: int = 2, **more: Any) -> Iterator[Ranks]:
    """Ranks that have met, and whose memory is out."""
    path.parent.chmod(0o700)
    found = Ranks(path, ranks, **more)
    try:
        yield found
    finally:
        found.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("gpupool-gang")]
