"""What the swaps of each model came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from gpupool._core import PagePool, SwapReport
from gpupool.arbiter import Arbiter
from gpupool.host_budget.images import Images
from gpupool.statistics import ModelStatistics, SwapCount


class SwapCounts:
    """In and out, by model."""

    def __init__(self) -> None:
        """Of no model yet."""
        self._of: dict[int, tuple[SwapCount, SwapCount]] = {}
        self._damaged: Counter[int] = Counter()

    def add(self, key: int) -> None:
        """A model joins."""
        self._of[key] = SwapCount(), SwapCount()

    def remove(self, key: int) -> bool:
        """A model has left; False if it had before."""
        self._damaged.pop(key, None)
        return self._of.pop(key, None) is not None

    def came(self, key: int, report: SwapReport) -> None:
        """It swapped in."""
        self._of[key][0].add(report)

    def went(self, key: int, report: SwapReport) -> None:
        """It swapped out."""
        self._of[key][1].add(report)

    def damaged(self, key: int) -> None:
        """Memory that it has, or was to have, was not what was saved."""
        self._damaged[key] += 1

    def statistics(
        self, arbiter: Arbiter, pages: PagePool, images_of: Callable[[int], Images]
    ) -> tuple[ModelStatistics, ...]:
        """The models in the order they joined."""
        return tuple(
            ModelStatistics(
                name=lease.name,
                held_bytes=len(pages.owned(lease.key)) * pages.page_bytes,
                needed_bytes=lease.pages * pages.page_bytes,
                swap_ins=self._of[lease.key][0].statistics(),
                swap_outs=self._of[lease.key][1].statistics(),
                damaged=self._damaged[lease.key],
                parked_bytes=images.parked_bytes,
                parked_file_bytes=images.file_bytes,
                parks=images.parks,
                read_backs=images.read_backs,
                read_back_bytes=images.read_back_bytes,
                read_back_s=images.read_back_s,
            )
            for lease in arbiter.leases()
            for images in [images_of(lease.key)]
        )
