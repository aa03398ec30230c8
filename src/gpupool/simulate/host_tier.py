"""The host's memory for weights, where it cannot hold all models."""

from __future__ import annotations


class HostTier:
    """Weights that are not in it are read from disk first; the least recently used leave."""

    def __init__(self, capacity_bytes: float, disk_bytes_per_s: float) -> None:
        self._capacity_bytes = capacity_bytes
        self._disk_bytes_per_s = disk_bytes_per_s
        self._held: dict[int, float] = {}

    def read_s(self, model: int, weights_bytes: float) -> float:
        """Seconds until a model's weights are in the host's memory, where they are from then on."""
        if model in self._held:
            self._held[model] = self._held.pop(model)
            return 0.0
        used = sum(self._held.values())
        while self._held and used + weights_bytes > self._capacity_bytes:
            used -= self._held.pop(next(iter(self._held)))
        if weights_bytes <= self._capacity_bytes:
            self._held[model] = weights_bytes
        return weights_bytes / self._disk_bytes_per_s
