"""What the arbiter is told of each model, so that it does as the policy says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gpupool.arbiter.leases import Lease
from gpupool.live.wants import OUT_S

_NEVER_S = float("-inf")


class Orders:
    """Gives each lease a rank, and a time before which its model is not made to leave."""

    def __init__(self, silent_s: float, newest_s: Mapping[int, float]) -> None:
        """A model of which nothing was heard for ``silent_s`` may be made to leave in any case.

        ``newest_s`` says when the last request of a model came.
        """
        self._silent_s = silent_s
        self._newest_s = newest_s
        self._heard_s: dict[int, float] = {}
        """When something was heard of a model last."""

    def heard(self, key: int, now_s: float) -> None:
        """Its engine said something of its requests, or that it has come."""
        self._heard_s[key] = now_s

    def forget(self, key: int) -> None:
        """The model is gone."""
        self._heard_s.pop(key, None)

    def give(
        self, leases: Sequence[Lease], line: Iterable[int], target: int | None, now_s: float
    ) -> None:
        """Whoever has begun with pages goes on, then those of the line, then all others.

        While a device switches to ``target`` everybody else makes room, and it stays once it has
        its pages.
        """
        place_of = {key: place for place, key in enumerate(dict.fromkeys(line))}
        last, silent_s, since_s = len(place_of), self._silent_s, now_s - OUT_S
        heard_s, newest_s = self._heard_s, self._newest_s
        for lease in leases:  # many, at each look: nothing is called here but what must be
            key = lease.key
            lease.rank = -1 if lease.begun else place_of.get(key, last)
            if target is None or target == key:
                heard = heard_s.get(key, 0.0)
                lease.turn_ends_s = (heard if heard > lease.since_s else lease.since_s) + silent_s
            else:
                lease.turn_ends_s = 0.0
            lease.expected = newest_s.get(key, _NEVER_S) > since_s
