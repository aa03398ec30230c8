"""The host's memory for weights, where it cannot hold all models."""

from __future__ import annotations

from math import inf


class HostTier:
    """Weights that are not in it are read from disk first; the least recently used leave."""

    def __init__(self, capacity_bytes: float, disk_bytes_per_s: float) -> None:
        self._capacity_bytes = capacity_bytes
        self._disk_bytes_per_s = disk_bytes_per_s
        self._held: dict[int, float] = {}
        """What is there of which models, used least recently first."""

    def read(self, model: int, weights_bytes: float, most_s: float = inf) -> float:
        """Read what is missing of a model's weights, for so long at most; seconds that it took.

        What was read stays, and is gone on with the next time, but of a model that is too large.
        """
        have = self._held.pop(model, 0.0)
        whole_s = (weights_bytes - have) / self._disk_bytes_per_s
        if weights_bytes <= self._capacity_bytes:
            used = sum(self._held.values())
            while self._held and used + weights_bytes > self._capacity_bytes:
                used -= self._held.pop(next(iter(self._held)))
            more = most_s * self._disk_bytes_per_s if most_s < whole_s else weights_bytes - have
            self._held[model] = have + more
        return min(whole_s, most_s)
