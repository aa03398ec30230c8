"""gpupool under unmodified vLLM: start any engine with ``--worker-cls gpupool.vllm.Worker``.

This is the only room that imports vLLM: when the worker is asked for, and in vLLM's processes,
which run ``plugin`` as they start.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Worker":
        from gpupool.vllm.worker import Worker

        return Worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
