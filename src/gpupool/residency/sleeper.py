"""A model's memory that can be told to stay out."""

from __future__ import annotations

from gpupool._core import SwapReport
from gpupool.errors import UsageError
from gpupool.residency.ahead import Ahead
from gpupool.residency.residency import Residency


class Sleeper(Residency):
    """Comes in for nobody while it is asleep, neither for a step nor ahead of one."""

    asleep = False

    def bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> SwapReport:
        """Get pages and restore every region. Raises UsageError while it is asleep."""
        self.check_awake()
        return super().bring_in(timeout_s, ahead)

    def check_awake(self) -> None:
        """Raise UsageError while it is asleep."""
        if self.asleep:
            raise UsageError(f"model {self._name!r} is asleep: wake it up first")
