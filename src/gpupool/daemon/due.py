"""When a model that has been told to leave must have: the daemon and the model reckon alike."""

from __future__ import annotations


class Due:
    """Of one order. Not thread safe.

    A step that takes longer than others puts it off if it was told of before the order was due;
    once it has ended there is as much time left as others have, at most.
    """

    def __init__(self, now_s: float, others_s: float, step_s: float) -> None:
        """Ordered ``now_s``, of a model whose steps may take ``step_s``; others have less."""
        self.ordered_s = now_s
        self._others_s = others_s
        self._first_s = now_s + others_s
        self.at_s = now_s + max(others_s, step_s)

    @property
    def longer_s(self) -> float:
        """How much later than it would be if there were no long steps."""
        return self.at_s - self._first_s

    def lasts(self, step_s: float, now_s: float) -> None:
        """Steps may take so long from now on; 0 if no longer than those of others."""
        at_s = now_s + max(self._others_s, step_s)
        begins = step_s > self._others_s and now_s <= self._first_s
        self.at_s = at_s if begins else min(self.at_s, at_s)
