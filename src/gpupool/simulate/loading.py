"""How long weights and KV take to come in: the seam between the simulator and its assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gpupool.schedule.costs import Costs
from gpupool.schedule.work import Batch, Device


class Loader(Protocol):
    """Accounts for what is on each device. Times are seconds that the device does not compute."""

    def switch_s(self, device: Device, batch: Batch, keep: Sequence[int]) -> float:
        """A model's weights come in; of the others those in ``keep`` stay longest."""

    def kv_s(self, device: Device, batch: Batch, *, more_tokens: int, new_turn: bool) -> float:
        """The KV of a batch comes in, as far as it is not there, and room for so much more."""

    def computed(
        self, device: Device, batch: Batch, busy_s: float, made_tokens: int, then: Sequence[int]
    ) -> None:
        """A batch ran, which made KV of so many tokens; these models could be fetched meanwhile."""

    def left(self, device: Device, batch: Batch) -> None:
        """A batch has no requests any more."""


class ArtifactLoader:
    """As Aegaeon's artifact has it, whatever the policy asks to keep or to fetch.

    A switch takes the time of its weights less all time computed since the switch before, but no
    less than ``switch_s_min``. KV comes in whole at the start of each turn.
    """

    def __init__(
        self, costs: Mapping[int, Costs], switch_s_min: float, *, prefetches: bool, moves_kv: bool
    ) -> None:
        self._costs = costs
        self._switch_s_min = switch_s_min
        self._prefetches = prefetches
        self._moves_kv = moves_kv
        self._since_s: dict[int, float] = {}

    def switch_s(self, device: Device, batch: Batch, keep: Sequence[int]) -> float:
        """See Loader."""
        took_s = self._costs[batch.model].switch_s
        if not self._prefetches:
            return took_s
        return max(self._switch_s_min, took_s - self._since_s.pop(device.key, 0.0))

    def kv_s(self, device: Device, batch: Batch, *, more_tokens: int, new_turn: bool) -> float:
        """See Loader."""
        if not (self._moves_kv and new_turn):
            return 0.0
        return batch.context_tokens * self._costs[batch.model].kv_s_per_token

    def computed(
        self, device: Device, batch: Batch, busy_s: float, made_tokens: int, then: Sequence[int]
    ) -> None:
        """See Loader."""
        self._since_s[device.key] = self._since_s.get(device.key, 0.0) + busy_s

    def left(self, device: Device, batch: Batch) -> None:
        """See Loader."""
