"""Steps that are open, and the threads that opened them."""

from __future__ import annotations

import threading

from gpupool.errors import UsageError


class OpenSteps:
    """Of one model. Not thread safe."""

    def __init__(self) -> None:
        """None is open."""
        self._by: dict[int, int] = {}  # thread -> open steps, never 0
        self.count = 0
        """How many are open."""

    def open(self) -> None:
        """One more, by this thread."""
        thread = threading.get_ident()
        self.count += 1
        self._by[thread] = self._by.get(thread, 0) + 1

    def close(self) -> None:
        """One less: of this thread, or of another that opened it. Raises UsageError."""
        if self.count == 0:
            raise UsageError("close_step without an open step")
        self.count -= 1
        holder = threading.get_ident()
        if holder not in self._by:
            holder = next(iter(self._by))
        self._by[holder] -= 1
        if self._by[holder] == 0:
            del self._by[holder]

    def are_mine(self) -> bool:
        """Whether this thread has one open."""
        return threading.get_ident() in self._by
