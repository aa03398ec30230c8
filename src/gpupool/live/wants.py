"""Which requests a model wants to have served now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from operator import attrgetter

from gpupool.arbiter.leases import Lease
from gpupool.live.requests import Requests
from gpupool.schedule.turns import Residency
from gpupool.schedule.work import Request

_STANDING = attrgetter("state", "ahead", "idle", "fenced", "since_s", "held", "pages")
OUT_S = 0.25
"""An engine with requests that has not asked for its memory by then is not counted on."""


class Wants:
    """What is known of requests, of leases, and of engines that do not tell."""

    def __init__(
        self, requests: Requests, turn_s: float, ttft_of_s: Callable[[int], float]
    ) -> None:
        """Work that nobody tells of is due ``turn_s`` after it asked for memory."""
        self._requests = requests
        self._turn_s = turn_s
        self._ttft_of_s = ttft_of_s
        self._standing_for: dict[int, Request] = {}
        """The requests that stand for work of which nobody tells, by model."""
        self._telling: set[int] = set()
        self._looked: dict[int, object] = {}

    def tells(self, key: int) -> None:
        """A model's engine tells of its requests: where it has none, there are none."""
        if key not in self._telling:
            self._telling.add(key)
            self._looked.pop(key, None)

    def forget(self, key: int) -> None:
        """The model is gone."""
        self._standing_for.pop(key, None)
        self._telling.discard(key)
        self._looked.pop(key, None)

    def changed(
        self, names: Mapping[int, str], leases: Sequence[Lease], besides: Set[int]
    ) -> Iterator[tuple[int, str, Lease]]:
        """The models of which anything is new, but for the time, since this was asked last.

        And those ``besides``. There may be many models: this is all that each costs at each look.
        """
        looked, told = self._looked, self._requests.changed.copy()
        self._requests.changed.clear()
        for (key, name), lease in zip(names.items(), leases, strict=True):
            standing = _STANDING(lease)
            if standing != looked.get(key) or name in told or key in besides:
                looked[key] = standing
                yield key, name, lease

    def now(self, key: int, name: str, lease: Lease, now_s: float, *, known: bool) -> list[Request]:
        """The requests, or one that stands for whatever else the model wants to do.

        None for a model that is out and has not asked, unless those that are ``known`` have only
        just been interrupted.
        """
        late = lease.state is Residency.OUT and (not known or lease.since_s + OUT_S <= now_s)
        ahead = lease.state is Residency.WAITING and lease.ahead
        if lease.fenced or late or ahead:
            self._standing_for.pop(key, None)
            return []
        found = self._requests.of(name)
        works = not lease.idle and key not in self._telling
        if found or not (works or lease.state is Residency.WAITING):
            self._standing_for.pop(key, None)
            return found
        if key not in self._standing_for:
            arrival_s = lease.since_s + self._turn_s - self._ttft_of_s(key)
            self._standing_for[key] = self._requests.unannounced(key, arrival_s)
        return [self._standing_for[key]]
