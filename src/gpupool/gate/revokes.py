"""Those that wait for a model to leave its memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gpupool.gate.turn import Turn


class Revokes:
    """How many threads do, for any of whom the model's turn may be cut short."""

    def __init__(self, turn: Turn, changed: threading.Condition) -> None:
        """None yet. ``changed`` guards the turn, and is told when one waits no more."""
        self._turn, self._changed = turn, changed
        self.count = 0

    @contextmanager
    def one(self, hurry_s: float | None) -> Iterator[None]:
        """Wait in a ``with`` block; what is left of the turn in ``hurry_s`` no longer counts.

        It counts for as long as it lasts if that is None.
        """
        with self._changed:
            self.count += 1
            if hurry_s is not None:
                self._turn.hurry_in(hurry_s)
        try:
            yield
        finally:
            with self._changed:
                self.count -= 1
                if self.count == 0:
                    self._turn.calm()
                self._changed.notify_all()
