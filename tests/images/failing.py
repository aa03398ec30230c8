"""Calls that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Failing:
    """Raises an ``error`` when it is called for the nth time, and is the ``real`` one otherwise.

    Keeps none, whose traceback would keep what the test lets go.
    """

    def __init__(
        self, real: Callable[..., Any], nth: int, error: Callable[[], BaseException]
    ) -> None:
        self.calls = 0
        self._real, self._nth, self._error = real, nth, error

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self._nth:
            raise self._error()
        return self._real(*arguments)
