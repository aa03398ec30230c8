"""An engine's state, as the status page and the metrics show it."""

from __future__ import annotations

import msgspec


class EngineReport(msgspec.Struct, frozen=True):
    """An engine's state as `GET /status` gives it."""

    name: str
    state: str  # a Phase
    pid: int | None
    worker_pid: int | None
    cold_start_s: float | None  # from the process's start to its first healthy answer
    restarts: int
    retry_after_s: float
    detail: str  # why it is not ready
