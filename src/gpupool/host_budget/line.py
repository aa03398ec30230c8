"""Who waits for host memory, in order of arrival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpupool.host_images import in_system_pages


@dataclass
class Waiter:
    """One model and what it asked for, of which it gets all or nothing."""

    key: int
    sizes_bytes: list[int]
    ahead: bool
    """Nobody waits for it yet."""
    returns: bool = False
    """It is for images that were parked."""

    @property
    def total_bytes(self) -> int:
        """In whole pages of the system."""
        return sum(map(in_system_pages, self.sizes_bytes))


class HostLine:
    """Those who wait; who asks ahead of use is behind all others."""

    def __init__(self) -> None:
        """Nobody."""
        self._waiters: list[Waiter] = []

    @property
    def first(self) -> Waiter | None:
        """Who is next."""
        return next(iter(self._waiters), None)

    @property
    def keys(self) -> set[int]:
        """Of all who wait."""
        return {waiter.key for waiter in self._waiters}

    def has(self, key: int) -> bool:
        """Whether a model waits."""
        return any(waiter.key == key for waiter in self._waiters)

    def add(self, waiter: Waiter) -> None:
        """One more."""
        self._waiters.append(waiter)
        self._sort()

    def leave(self, key: int) -> Waiter | None:
        """It waits no more; None if it did not."""
        left = next((waiter for waiter in self._waiters if waiter.key == key), None)
        self._waiters = [waiter for waiter in self._waiters if waiter is not left]
        return left

    def keep(self, is_here: Callable[[int], bool]) -> None:
        """Forget all others."""
        self._waiters = [waiter for waiter in self._waiters if is_here(waiter.key)]

    def hurry(self, key: int) -> None:
        """What a model asked for ahead it waits for now, behind those who do already."""
        for waiter in [w for w in self._waiters if w.key == key and w.ahead]:
            self.leave(key)
            waiter.ahead = False
            self.add(waiter)

    def _sort(self) -> None:
        self._waiters.sort(key=lambda waiter: waiter.ahead)
