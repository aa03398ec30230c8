"""A pooled engine's steps: each with the memory in place, and told of where that is wanted."""

from __future__ import annotations

import time
from typing import Any

from vllm.logger import init_logger

from gpupool.model import Model
from gpupool.vllm.block_use import BlockTables
from gpupool.vllm.kv_keeping import KvKeeping
from gpupool.vllm.reporting import Reporter

logger = init_logger(__name__)

_WAITED_S = 1e-3  # an open gate takes microseconds


class PoolSteps:
    """What a pooled worker does beside running a step; mixed in before the platform's worker."""

    pool_model: Model
    _pool_tables: BlockTables
    _pool_reporter: Reporter | None = None  # nobody wants to know, or it is not ready
    _pool_kv: KvKeeping | None = None
    _pool_unsampled = 0  # steps whose sample_tokens is still to come
    _pool_follows = False  # a rank behind the first

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step with the memory in place."""
        try:
            return self._pool_step(scheduler_output)
        except Exception as error:
            self._pool_end_behind(error)
            raise

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Finish the step that ``execute_model`` left open."""
        try:
            return self._pool_sample(grammar_output)
        except Exception as error:
            self._pool_end_behind(error)
            raise

    def _pool_end_behind(self, error: Exception) -> None:
        """End the process of a rank that failed, unless it is the first.

        vLLM hears of failures from the first rank alone, which may wait for this one for as long as
        a step may take; but that a process has ended it sees at once.
        """
        if self._pool_follows:
            logger.exception("gpupool: this rank ends, and the engine with it")
            raise SystemExit(1) from error

    def _pool_step(self, scheduler_output: Any) -> Any:
        gate = self.pool_model.gate
        use = self._pool_tables.step(scheduler_output)
        if self._pool_kv is not None:
            self._pool_kv.announce(use)
        if self._pool_reporter is not None:
            self._pool_reporter.scheduled(scheduler_output)
        if not _touches_memory(scheduler_output):
            output = super().execute_model(scheduler_output)  # type: ignore[misc]
            gate.set_idle(self._pool_tables.live_requests == 0)
            return output
        self.pool_model.check_awake()  # before a gang begins what it would break over
        gate.set_idle(False)
        if self._pool_reporter is None:
            gate.open_step()
        else:
            asked_s = time.monotonic()
            gate.open_step()
            waited = time.monotonic() - asked_s > _WAITED_S
            self._pool_reporter.begins(scheduler_output, waited=waited)
        try:
            if self._pool_kv is not None:
                self._pool_kv.begin(use)
            output = super().execute_model(scheduler_output)  # type: ignore[misc]
        except BaseException:
            gate.close_step(counts=False)
            raise
        if output is None:
            self._pool_unsampled += 1
        else:
            gate.close_step()
        return output

    def _pool_sample(self, grammar_output: Any) -> Any:
        if self._pool_unsampled == 0:
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        try:
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        finally:
            self._pool_unsampled -= 1
            self.pool_model.gate.close_step()


def _touches_memory(scheduler_output: Any) -> bool:
    return bool(
        scheduler_output.total_num_scheduled_tokens > 0
        or getattr(scheduler_output, "new_block_ids_to_zero", None)
        or getattr(scheduler_output, "kv_cache_block_copies", None)
    )
