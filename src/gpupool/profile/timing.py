"""Prefill and decode told apart, by when tokens came. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from gpupool.errors import UsageError


class Step(NamedTuple):
    """A step of the engine ended, and these requests had a token each of it."""

    at_s: float
    requests: Collection[str]


def told_apart(began_s: float, steps: Sequence[Step], batch: int) -> tuple[float, list[float]]:
    """Seconds until the last request had its first token, and of each step in which all decode.

    A decode step lasts from the tokens before to its own, so scheduling is in it as it is when an
    engine serves. Raises UsageError where there is none in which all decode.
    """
    prefill_s: float | None = None
    started: set[str] = set()
    decodes_s: list[float] = []
    before_s = began_s
    for step in steps:
        if not step.requests:
            continue
        if prefill_s is not None and len(step.requests) == batch:
            decodes_s.append(step.at_s - before_s)
        started.update(step.requests)
        if prefill_s is None and len(started) == batch:
            prefill_s = step.at_s - began_s
        before_s = step.at_s
    if prefill_s is None or not decodes_s:
        raise UsageError(
            f"{batch} requests never decoded together: the engine ran them one after the other;"
            " give a larger --kv-cache or smaller --batch-sizes"
        )
    return prefill_s, decodes_s
