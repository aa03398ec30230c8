"""What was decided: in words for who asks, and as it was for a recording."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from gpupool.schedule.explaining import explain
from gpupool.schedule.recording import Decided, encode
from gpupool.schedule.work import Action, State

_WHY_MAX = 64


class Notes:
    """The last decisions, with names for the keys of models."""

    def __init__(self, names: Mapping[int, str], record: Callable[[Decided], None] | None) -> None:
        """``record`` gets each decision, before it is applied."""
        self._names = names
        self._record = record
        self._why: deque[tuple[float, str]] = deque(maxlen=_WHY_MAX)

    def note(self, state: State, now_s: float, actions: Sequence[Action]) -> None:
        """Actions that have not been applied."""
        if self._record is not None:
            self._record(encode(state, now_s, actions, self._names))
        for action in actions:
            why = explain(state, now_s, action, self._names.__getitem__)
            if why is not None:
                self._why.append((now_s, why))

    def why(self, now_s: float) -> list[tuple[float, str]]:
        """How many seconds ago each was made, and why, newest first."""
        return [(now_s - at_s, text) for at_s, text in reversed(self._why)]
