"""What is done to a real engine while its blocks are on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def worker_of(one: Any) -> Any:
    return one.engine_core.engine_core.model_executor.driver_worker.worker


class MidSwap:
    """What is to be done to an engine while its blocks are on their way, and if they stay, when
    they would have been: a stock engine has the same done at those points.
    """

    def __init__(self, one: Any) -> None:
        """Watch that engine."""
        self.leaving: list[Callable[[], None]] = []  # before it is scheduled again
        self.arriving: list[Callable[[], None]] = []  # once a step is scheduled and not yet run
        self.in_flight = [0, 0]  # of each, what was done with copies in flight
        worker = worker_of(one)
        if worker_pools := hasattr(worker, "pool_model"):
            mover = worker._pool_kv._kv.cache._mover
            mover.to_host = self._with(mover.to_host, 0)
            mover.to_device = self._with(mover.to_device, 1)
        execute = worker.execute_model

        def executed(scheduled: Any) -> Any:
            if not worker_pools:
                self.act(1)
                return execute(scheduled)
            output = execute(scheduled)
            self.act(1)
            return output

        worker.execute_model = executed

    def act(self, which: int) -> int:
        """Do it now; how much there was."""
        waiting = (self.leaving, self.arriving)[which]
        done = 0
        while waiting:
            waiting.pop()()
            done += 1
        return done

    def _with(self, move: Callable[..., None], which: int) -> Callable[..., None]:
        def moving(*arguments: Any) -> None:
            move(*arguments)
            self.in_flight[which] += self.act(which)

        return moving
