"""Who fetches ahead of use pauses while somebody waits for another model on the same link."""

from __future__ import annotations

from collections.abc import Mapping

from gpupool.arbiter import Arbiter
from gpupool.daemon import protocol as p
from gpupool.daemon.workers import Worker


class GivingWay:
    """Tells workers that copy ahead whether they are to wait."""

    def __init__(self, arbiter: Arbiter, workers: Mapping[int, Worker]) -> None:
        """Nobody is in anybody's way."""
        self._arbiter = arbiter
        self._workers = workers

    def settle(self) -> None:
        """Look who comes in, ahead and not, and tell those for whom that has changed."""
        ahead = [worker for worker in self._workers.values() if worker.ahead and worker.arriving]
        if not ahead:
            return
        now = any(self._is_awaited(key, worker) for key, worker in self._workers.items())
        for worker in ahead:
            if worker.gives_way != now and not worker.lost:
                worker.gives_way = now
                worker.peer.say(p.GiveWay(now, worker.acquires))

    def _is_awaited(self, key: int, worker: Worker) -> bool:
        copies = worker.arriving or self._arbiter.lease(key).begun > 0
        return copies and not worker.ahead and not worker.lost
