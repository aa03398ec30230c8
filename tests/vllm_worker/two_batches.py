"""Engines on a CPU that schedule a batch while the one before it runs, as they do on GPUs."""

from __future__ import annotations

from typing import Any

from vllm.platforms.cpu import CpuPlatform


def keep_two_in_flight() -> None:
    """For every engine that is made from now on.

    vLLM switches that off on CPUs, whatever is asked for, since it gains nothing there; it has all
    that it takes.
    """
    settle = CpuPlatform.check_and_update_config.__func__

    def settled(cls: type, vllm_config: Any) -> None:
        settle(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(settled)


def in_flight(one: Any) -> int:
    """How many batches of an engine have been scheduled whose tokens nobody has seen yet."""
    return len(one.engine_core.engine_core.batch_queue or ())
