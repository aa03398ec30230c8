"""What engines have of a GPU outside the pool, by how they were started."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.device_memory import DeviceMemory
    from benchmarks.engine_process import EngineProcess

MIB = 1 << 20


class EngineMemory:
    """Looks at a device before each start and after it; nothing else may change meanwhile.

    A daemon's pages are there all the time, so what a pooled engine takes is outside them.
    """

    def __init__(self, device: DeviceMemory) -> None:
        self._device = device
        self._before_bytes: int | None = None
        self._taken: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    def begin(self) -> None:
        """An engine is about to be started."""
        self._before_bytes = self._device.used_bytes()

    def take(self, kind: str, engine: EngineProcess) -> None:
        """It has its first token; ``torch_bytes`` has it give back what torch only caches."""
        if self._before_bytes is None:  # a device that does not say
            return
        # First: what would come free later would be missing from what the next engine takes.
        of_torch_bytes = engine.ask("torch_bytes", 0)
        used_bytes = self._device.used_bytes()
        assert used_bytes is not None
        self._taken[kind].append((used_bytes - self._before_bytes, of_torch_bytes))

    def clear(self) -> None:
        """What was taken so far counts for nothing."""
        self._taken.clear()

    def figures(self) -> dict[str, Any]:
        """Medians by kind of start, or nothing where the device does not say."""
        if not self._taken:
            return {}
        columns = {kind: list(zip(*rows, strict=True)) for kind, rows in self._taken.items()}
        keys = ("device_memory_mib", "of_torch_mib")
        return {
            key: {kind: statistics.median(columns[kind][i]) / MIB for kind in columns}
            for i, key in enumerate(keys)
        }
