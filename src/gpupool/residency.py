"""How a model's memory comes and goes: what its gate asks for, all or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NoReturn, Protocol, cast

from gpupool._core import ModelMemory, Region, SwapReport, Tag
from gpupool.errors import DaemonUnavailableError, UsageError
from gpupool.session import Session
from gpupool.trace import Values, span


class Keeper(Protocol):
    """Keeps over swaps what a region without an image holds, by copies of its own."""

    def arrived(self) -> None:
        """The memory is there and reads as zeros: begin to bring back what was kept.

        After an error the model leaves again, with ``settle`` and ``left``.
        """

    def leaving(self) -> None:
        """No step is open: keep what the memory holds. After an error the model stays."""

    def forsake(self) -> None:
        """No step is open and none will be: nothing is to be kept. Instead of ``leaving``."""

    def settle(self) -> None:
        """Return when nothing is in flight any more. After an error the memory stays mapped."""

    def left(self) -> None:
        """The memory is gone."""

    def close(self) -> None:
        """The model is closed: what was kept may go. Never fails for want of the daemon."""


class Residency:
    """The memory of one model and its standing with the arbiter."""

    def __init__(
        self, name: str, session: Session, before_swap_out: Callable[[], None] | None
    ) -> None:
        """Out and without regions."""
        self._name = name
        self._session = session
        self.before_swap_out = before_swap_out
        self.memory = ModelMemory(session.driver, session.page_bytes)
        self.regions: list[Region] = []
        self.keepers: list[Keeper] = []
        self.swap_ins = 0
        self.last_swap_in: SwapReport | None = None
        self.last_swap_out: SwapReport | None = None
        self.closing = False
        self._declared = 0
        self._stuck = False  # arrived in vain, and could not leave again

    @property
    def torn(self) -> bool:
        """Whether a failure left pages mapped; the next bring-in or give-up unmaps them."""
        return self._stuck or self.memory.torn

    def footprint_changed(self) -> None:
        """The arbiter must be told anew."""
        self._declared = 0

    def declare(self) -> None:
        """Tell the arbiter the footprint of the regions so far. Raises DoesNotFitError."""
        pages = self.memory.pages_needed
        if pages == 0:
            raise UsageError(f"model {self._name!r} has no region to be resident")
        if pages != self._declared:
            self._session.declare(pages, self._bytes_of(Tag.weights), self._bytes_of(Tag.kv_cache))
            self._declared = pages

    def set_idle(self, idle: bool) -> None:
        """Pass on whether there is unfinished work."""
        self._session.set_idle(idle)

    def bring_in(self, timeout_s: float) -> SwapReport:
        """Get pages and restore every region."""
        if self.torn:
            self._swap_out()
        self.declare()
        with span(self._session.driver, f"lease wait {self._name}", {}):
            grant = self._session.acquire(timeout_s)
        values: Values = {"pages": len(grant.pages), "clean_pages": grant.clean}
        try:
            with span(self._session.driver, f"swap in {self._name}", values):
                report = self.memory.swap_in(grant.pages, grant.clean)
                values.update(bytes=report.copied_bytes, zeroed_bytes=report.filled_bytes)
                self._let_arrive()
        except BaseException:
            if not self.torn:  # else they are still mapped, and go back once they are not
                with contextlib.suppress(DaemonUnavailableError):
                    self._session.give_back(None)
            raise
        self.swap_ins += 1
        self.last_swap_in = report
        with contextlib.suppress(DaemonUnavailableError):
            self._session.arrived(report)  # the memory is here all the same
        return report

    def give_up(self) -> SwapReport:
        """Save, unmap and give the pages back."""
        if self.memory.resident and not self._stuck:
            if self.before_swap_out is not None:
                self.before_swap_out()
            for keeper in self.keepers:
                if self.closing:
                    keeper.forsake()
                else:
                    keeper.leaving()
        return self._swap_out()

    def close(self) -> None:
        """The model has left for good."""
        for keeper in self.keepers:
            keeper.close()
        self.keepers.clear()
        self._session.close()

    def drop(self) -> None:
        """Let host images and addresses go, now that the model is closed."""
        self.regions = []
        self.memory = cast("ModelMemory", _NoMemory())

    def _let_arrive(self) -> None:
        try:
            for keeper in self.keepers:
                keeper.arrived()
        except BaseException:
            self._stuck = True
            with contextlib.suppress(Exception):  # the next bring-in or give-up tries again
                self._unmap()
            raise

    def _swap_out(self) -> SwapReport:
        values: Values = {}
        with span(self._session.driver, f"swap out {self._name}", values):
            report = self._unmap()
            values.update(pages=report.pages, bytes=report.copied_bytes)
        self.last_swap_out = report
        # The memory is given up all the same; the next acquire says what is wrong.
        with contextlib.suppress(DaemonUnavailableError):
            self._session.give_back(report)
        return report

    def _unmap(self) -> SwapReport:
        for keeper in self.keepers:
            keeper.settle()
        report = self.memory.swap_out()
        self._stuck = False
        for keeper in self.keepers:
            keeper.left()
        return report

    def _bytes_of(self, tag: Tag) -> int:
        return sum(region.bytes for region in self.regions if region.tag == tag)


class _NoMemory:
    """Stands for that of a closed model."""

    pages_needed = 0
    resident = False
    torn = False

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError("the model is closed")
