"""What a model tells of itself."""

from __future__ import annotations

from gpupool._core import SwapReport
from gpupool.residency import Sleeper
from gpupool.session import Session


class Figures:
    """How large it is, where, and what its swaps took."""

    _residency: Sleeper
    _session: Session

    @property
    def swap_ins(self) -> int:
        """How often the model has come in."""
        return self._residency.swap_ins

    @property
    def last_swap_in(self) -> SwapReport | None:
        """What the latest swap-in took."""
        return self._residency.last_swap_in

    @property
    def last_swap_out(self) -> SwapReport | None:
        """What the latest swap-out took."""
        return self._residency.last_swap_out

    @property
    def device_kind(self) -> str:
        """``host`` or ``cuda``."""
        return self._session.driver.kind

    @property
    def parks(self) -> bool:
        """Whether its images may go to a file when others need host memory."""
        return self._session.parking is not None

    @property
    def device_ordinal(self) -> int:
        """Index of the device among those that this process sees."""
        return self._session.driver.ordinal

    @property
    def footprint_bytes(self) -> int:
        """Device memory the model needs to be resident, in whole pages."""
        return self._residency.pages_needed * self._session.page_bytes

    @property
    def warm_bytes(self) -> int:
        """Device memory that it has while it is out, with what its next swap-in need not copy."""
        return self._residency.warm_pages * self._session.page_bytes
