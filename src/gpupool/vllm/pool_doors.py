"""A pooled worker's doors: what reaches its model from outside of steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from gpupool.errors import BehindGateError
from gpupool.model import Model
from gpupool.vllm import compat, waiting
from gpupool.vllm.kv_keeping import KvKeeping
from gpupool.vllm.sleep_backend import PoolBackend


class Inside(threading.local):
    """Whether this thread has come through a method of the worker; nests.

    There vLLM's layers find the worker's scratch memory, and none of another's.
    """

    depth = 0

    def __init__(self, workspaces: compat.OwnWorkspaces) -> None:
        self._workspaces = workspaces

    def __enter__(self) -> None:
        self._workspaces.__enter__()
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        self._workspaces.__exit__()


class PoolDoors:
    """Ways to a pooled model that bring it in, and that its sleep has; mixed in before a worker."""

    pool_model: Model
    _pool_inside: Inside
    _pool_sleep: PoolBackend
    _pool_kv: KvKeeping | None = None

    @property
    def model_runner(self) -> Any:
        """The platform's runner, for code that has come through the gate.

        Raises BehindGateError for other code, as a callable sent by ``collective_rpc`` is: what
        it would touch may not be there.
        """
        if not self._pool_inside.depth:
            raise BehindGateError(
                "a callable sent to a pooled worker must reach the model inside "
                "'with worker.resident():'"
            )
        return self._pool_runner

    @model_runner.setter
    def model_runner(self, runner: Any) -> None:
        self._pool_runner = runner

    @contextmanager
    def resident(self) -> Iterator[None]:
        """Keep the memory in place, and let the model be reached, for a ``with`` block.

        What the block changes of weights is saved.
        """
        with self._pool_inside, self._pool_door(writes=True, lasts=True):
            yield

    @property
    def sleep_mode_backend(self) -> PoolBackend:
        """What vLLM's own worker would go by; the next three do."""
        return self._pool_sleep

    def sleep(self, level: int = 1) -> None:
        """Leave the device until ``wake_up``. Raises UsageError for an unknown level."""
        self._pool_sleep.suspend(level)

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Bring the memory in, all of it, once the weights are to be awake."""
        self._pool_sleep.resume(tags)

    def discard(self, tags: tuple[str, ...]) -> None:
        """Forget what is in the KV cache, and leave. Raises UsageError for other tags."""
        self._pool_sleep.discard(tags)

    def _pool_forget_kv(self) -> None:
        if self._pool_kv is not None:
            self._pool_kv.forget()

    @contextmanager
    def _pool_door(self, writes: bool, lasts: bool) -> Iterator[None]:
        self.pool_model.check_awake()
        if writes:
            self.pool_model.unshare()
        with self._pool_lasting() if lasts else nullcontext(), self.pool_model.resident():
            try:
                yield
            finally:  # also after a failure: part may have been written
                if writes:
                    self.pool_model.mark_written("weights")

    def _pool_lasting(self) -> AbstractContextManager[None]:
        return self.pool_model.lasting(waiting.long_step_s())
