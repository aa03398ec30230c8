"""What was decided: in words for who asks, and as it was for a recording."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from gpupool.schedule.explaining import GivenUp, Reason, reason
from gpupool.schedule.recording import Decided, encode
from gpupool.schedule.work import Action, State

_WHY_MAX = 64


class Notes:
    """The last decisions, with names for the keys of models."""

    def __init__(self, names: Mapping[int, str], record: Callable[[Decided], None] | None) -> None:
        """``record`` gets each decision, before it is applied."""
        self._names = names
        self._record = record
        self._reasons: deque[tuple[float, Reason | GivenUp]] = deque(maxlen=_WHY_MAX)

    def note(self, state: State, now_s: float, actions: Sequence[Action]) -> None:
        """Actions that have not been applied."""
        if self._record is not None:
            self._record(encode(state, now_s, actions, self._names))
        for action in actions:
            found = reason(state, now_s, action, self._names.__getitem__)
            if found is not None:
                self._reasons.append((now_s, found))

    def why(self, now_s: float) -> list[tuple[float, str]]:
        """How many seconds ago each was made, and why, newest first."""
        return [(now_s - at_s, found.in_words()) for at_s, found in reversed(self._reasons)]
