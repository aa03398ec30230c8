"""Memory that models of this process found not to be what was saved, and who else has it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from gpupool.arbiter import Arbiter
from gpupool.arbiter.distrust import why_to_leave
from gpupool.embedded.swap_counts import SwapCounts
from gpupool.session import Revocable

log = logging.getLogger(__name__)


class Damage:
    """Counts it, warns of it, and has the others that have such pages leave them."""

    def __init__(
        self, arbiter: Arbiter, holders: Mapping[int, Revocable], counts: SwapCounts
    ) -> None:
        """None yet. Whoever calls has the lock that guards these."""
        self._arbiter = arbiter
        self._holders = holders
        self._counts = counts

    def found(self, key: int, message: str, pages: Iterable[int]) -> None:
        """By a model, on these pages if others may have it too.

        Who is resident with them leaves as its next step is to begin: nobody waits for it here.
        """
        finder = self._arbiter.lease(key).name
        self._counts.damaged(key)
        log.warning("gpupool: model %r: %s", finder, message)
        for other in self._arbiter.distrust(key, pages):
            self._counts.damaged(other)
            log.warning("gpupool: %s", why_to_leave(self._arbiter.lease(other).name, finder))
            if self._arbiter.must_leave(other):
                self._holders[other].distrust()
