"""How long something takes by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any


def timed_s(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def each(call: Callable[..., Any], *arguments: Iterable[Any]) -> None:
    """Call it for each of them, as a swap does for its pages."""
    for some in zip(*arguments, strict=True):
        call(*some)
