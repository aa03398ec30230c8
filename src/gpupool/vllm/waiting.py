"""How long an engine's steps wait, and how long it may have others wait."""

from __future__ import annotations

from gpupool.vllm import compat

_SHARE = 0.8


def lease_timeout_s() -> float:
    """For its memory: less than vLLM gives a step."""
    return _SHARE * compat.step_timeout_s()


def long_step_s() -> float:
    """For what takes longer than a step, as its start: others are not to give up before."""
    return min(_SHARE * lease_timeout_s(), compat.start_timeout_s())
