"""Which requests a model wants to have served now."""

from __future__ import annotations

from collections.abc import Callable

from gpupool.leases import Lease
from gpupool.live.requests import Requests
from gpupool.schedule.turns import Residency
from gpupool.schedule.work import Request

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
        self._looked: dict[int, tuple[object, ...]] = {}

    def tells(self, key: int) -> None:
        """A model's engine tells of its requests: where it has none, there are none."""
        self._telling.add(key)

    def forget(self, key: int) -> None:
        """The model is gone."""
        self._standing_for.pop(key, None)
        self._telling.discard(key)
        self._looked.pop(key, None)

    def changed(self, key: int, name: str, lease: Lease) -> bool:
        """Whether anything is new, but for the time, since this was asked last."""
        asks = lease.state, lease.ahead, lease.idle, lease.fenced, lease.since_s
        looks = (*asks, key in self._telling, self._requests.version(name))
        before, self._looked[key] = self._looked.get(key), looks
        return looks != before

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
