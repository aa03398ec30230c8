"""Pages that several models have and that were found not to have what they should."""

from __future__ import annotations

from collections.abc import Iterable

from gpupool.arbiter.holdings import Holdings
from gpupool.schedule.turns import Cool, Residency


class Distrust(Holdings):
    """Who has such pages is to let go of them. Not thread safe."""

    def distrust(self, key: int, pages: Iterable[int]) -> list[int]:
        """The model did not find on these what they should have: nobody is given them as such.

        It comes back from its own image alone. Returns the others that have some, see
        ``must_leave``; where they are warm ``decide`` asks for them. Raises UsageError for a page
        that the model does not hold.
        """
        pages = list(pages)
        self._require_own(key, pages)
        others = self._contents.distrust(key, pages)
        for other in others:
            self._unpin(self._leases[other])  # which it was not given yet
        return sorted(others & self._contents.have_wrong())

    def must_leave(self, key: int) -> bool:
        """Whether a model that has such a page may begin a step on it unless it is told."""
        lease = self._leases[key]
        return lease.state in (Residency.RESIDENT, Residency.LEAVING) and not lease.fenced

    def _warm_and_wrong(self, now_s: float) -> list[Cool]:
        if not (wrong := self._contents.have_wrong()):
            return []
        return [
            Cool(lease.key, lease.held)
            for lease in self._leases.values()
            if lease.key in wrong
            and self.warm_of(lease) > 0
            and not lease.asked_to_cool
            and lease.stays_until_s <= now_s
        ]


def why_to_leave(model: str, finder: str) -> str:
    """What a model hears whose page ``finder`` had as well, and found wrong."""
    return (
        f"model {model!r} leaves before its next step and comes back from its image: model "
        f"{finder!r} has a page together with it, and found other bytes there than were saved, "
        "which steps since it came may have read"
    )
