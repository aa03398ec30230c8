"""What of a swap-in can be done before all pages are there: the first in line fills what comes."""

from __future__ import annotations

from functools import partial

from gpupool._core import ModelMemory, Page, SwapReport
from gpupool.errors import GpupoolError
from gpupool.residency.ahead import Ahead, counted


class EarlyArrival:
    """Pages of one model that are warm before it has its lease."""

    def __init__(
        self, memory: ModelMemory, ahead: Ahead | None = None, *, shares: bool = False
    ) -> None:
        """For what can be warm of ``memory``; of one that ``shares`` nothing is used early.

        With ``ahead`` nobody waits for it yet, or somebody does by now.
        """
        self._memory = memory
        self._ahead = ahead
        self._shares = shares
        self.report = SwapReport()
        """Of what was filled."""
        self.stuck = False
        """Pages that were to go stay mapped: the next bring-in or give-up unmaps them."""

    def use(self, pages: list[Page]) -> int:
        """Fill the first so many of these. Raises DriverError or DamagedMemoryError."""
        if self._shares:
            return 0  # what comes may belong behind pages of others, which come later
        count = min(len(pages), self._memory.warmable_pages - self._memory.warm_pages)
        if count > 0:
            self.report += counted(self._ahead, partial(self._memory.warm, pages[:count]))
        return count

    def undo(self) -> bool:
        """Unmap them again, and what was warm; False if the driver does not let it be."""
        if self.stuck:
            return False
        self.report = SwapReport()
        try:
            if self._memory.torn:
                self._memory.swap_out()
            else:
                self._memory.cool(self._memory.warm_pages)
        except GpupoolError:
            self.stuck = True
        except BaseException:  # interrupted
            self.stuck = self._memory.torn or self._memory.warm_pages > 0
            raise
        return not self.stuck
