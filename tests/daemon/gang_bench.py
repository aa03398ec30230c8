"""Engines of several ranks in this process, a thread for each, on a daemon for each device.

A step is a collective operation, here a barrier: a rank that left too early, or came too late,
leaves the others in it.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from daemon_bench import DEADLINE_S, PAGE_BYTES, Daemon

from gpupool._core import Region
from gpupool.gang.rank import GangRank
from gpupool.model import Model

PAGES = 2
_WORDS = PAGES * PAGE_BYTES // 8


class RankOfEngine:
    """One rank's model, whose memory has the number of the last step."""

    def __init__(self, sockets: Sequence[str], name: str, rank: int, min_steps: int) -> None:
        self.place = GangRank(sockets, name, rank, "one start of an engine")
        self.rank = rank
        self.model = Model(
            name,
            self.place.session,
            lease_timeout_s=DEADLINE_S,
            min_steps=min_steps,
            make_gate=self.place.make_gate,
        )
        self.region: Region = self.model.region("runtime", PAGES * PAGE_BYTES)
        self.steps = 0

    def check_and_renew(self) -> None:
        """The memory is what this rank left in it; write the next step's."""
        view = (ctypes.c_uint64 * _WORDS).from_address(self.region.address)
        due = self._word(self.steps) if self.steps else 0
        for at in (0, _WORDS // 2, _WORDS - 1):
            assert view[at] == due, f"{self.model.name} rank {self.rank}: {view[at]:x}, {due:x} due"
            view[at] = self._word(self.steps + 1)
        self.region.mark_written([(0, PAGES * PAGE_BYTES)])
        self.steps += 1

    def close(self) -> None:
        self.model.close()
        self.place.close()

    def _word(self, step: int) -> int:
        return (sum(self.model.name.encode()) << 32) + (self.rank << 24) + step


class Engine:
    """All ranks of one."""

    def __init__(self, daemons: Sequence[Daemon], name: str, min_steps: int = 0) -> None:
        sockets = [str(daemon.socket_path) for daemon in daemons]
        self.ranks = [RankOfEngine(sockets, name, rank, min_steps) for rank in range(len(daemons))]
        self._together = threading.Barrier(len(daemons), timeout=DEADLINE_S)
        self._threads = ThreadPoolExecutor(len(daemons))

    def run(self, steps: int, *, seed: int = 0, pauses: bool = False) -> list[BaseException | None]:
        """Have so many steps in every rank; what each ended with.

        With ``pauses`` all ranks give their memory up between the same steps now and then.
        """
        futures = [
            self._threads.submit(self._ends_together, rank, steps, random.Random(seed), pauses)
            for rank in self.ranks
        ]
        return [future.exception(2 * DEADLINE_S) for future in futures]

    @property
    def swap_ins(self) -> list[int]:
        return [rank.model.swap_ins for rank in self.ranks]

    def close(self) -> None:
        """All ranks at once, as an engine ends."""
        list(self._threads.map(RankOfEngine.close, self.ranks))
        self._threads.shutdown()

    def _ends_together(
        self, rank: RankOfEngine, steps: int, draw: random.Random, pauses: bool
    ) -> None:
        try:
            self._steps(rank, steps, draw, pauses)
        except BaseException:
            self._together.abort()  # what an engine does about its other ranks
            raise

    def _steps(self, rank: RankOfEngine, steps: int, draw: random.Random, pauses: bool) -> None:
        gate = rank.model.gate
        gate.set_idle(False)
        for _ in range(steps):
            if pauses and draw.random() < 0.2:  # the same in all ranks
                rank.model.swap_out()
            gate.open_step()
            try:
                self._together.wait()
                rank.check_and_renew()
                self._together.wait()
            finally:
                gate.close_step()
        gate.set_idle(True)
