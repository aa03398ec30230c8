"""Which requests the policy knows of, and where it has put them."""

from __future__ import annotations

from collections.abc import Iterable

from gpupool.schedule.work import Batch, Device, Request, State


class Places:
    """The requests of each model that the state of one device has."""

    def __init__(self, state: State, device: Device) -> None:
        """None yet."""
        self._state = state
        self._device = device
        self._placed: dict[int, dict[Request, Batch | None]] = {}
        self.newest_s: dict[int, float] = {}
        """When the last of a model's requests came."""

    def any_of(self, key: int) -> bool:
        """Whether the policy knows of one of this model."""
        return bool(self._placed.get(key))

    def keep_only(self, key: int, wanted: Iterable[Request]) -> bool:
        """Add what is new of a model's requests, and leave out what has gone; whether any was."""
        placed = self._placed.setdefault(key, {})
        wanted = dict.fromkeys(wanted)
        if placed.keys() == wanted.keys():
            return False
        for request in [request for request in placed if request not in wanted]:
            self._take_out(request)
            del placed[request]
        for request in wanted:
            if request not in placed:
                request.model = key
                placed[request] = None
                self._state.arrived.append(request)
        if placed:
            self.newest_s[key] = max(request.arrival_s for request in placed)
        else:
            del self._placed[key]
            self.newest_s.pop(key, None)
        return True

    def put(self, request: Request, batch: Batch | None, now_s: float) -> None:
        """In a batch, or in a new one."""
        self._state.arrived.remove(request)
        if batch is None:
            batch = Batch(request.model, ran_s=now_s)
            self._device.batches.append(batch)
        batch.requests.append(request)
        batch.sums = None
        batch.taken += 1
        self._placed[request.model][request] = batch

    def went_on(self, key: int) -> None:
        """Requests of this model are not as they were when its batches were summed up."""
        for batch in self._placed.get(key, {}).values():
            if batch is not None:
                batch.sums = None

    def give_up(self, request: Request) -> None:
        """It gets no place, and none later."""
        self._take_out(request)
        self._placed[request.model][request] = None

    def _take_out(self, request: Request) -> None:
        batch = self._placed[request.model][request]
        if batch is not None:
            batch.requests.remove(request)
            batch.sums = None
            if not batch.requests:
                self._device.batches.remove(batch)
        elif request in self._state.arrived:
            self._state.arrived.remove(request)
