"""What comes in from callers, looked at once at the door."""

from __future__ import annotations

import math
import operator
import threading

from gpupool.errors import UsageError

WHOLE_MAX = 1 << 62
SECONDS_MAX = threading.TIMEOUT_MAX / 2  # a century and more; what is left may be added to


def whole(name: str, value: object, *, least: int = 0, most: int = WHOLE_MAX) -> int:
    """A whole number within bounds. Raises UsageError."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise UsageError(
            f"{name}={_shown(value)}: it must be a whole number from {least} to {most}"
        )
    return number


def seconds(name: str, value: object, *, most: float = SECONDS_MAX) -> float:
    """A time to wait, cut down to what the system can wait for. Raises UsageError."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str) or math.isnan(number):
        raise UsageError(f"{name}={_shown(value)}: it must be a number of seconds")
    return min(number, most)


def _shown(value: object) -> str:
    try:
        return f"{value!r:.50}"
    except ValueError:  # an integer of more digits than Python writes
        return f"({type(value).__name__})"
