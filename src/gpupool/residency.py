"""How a model's memory comes and goes: what its gate asks for, all or nothing.

Regions with an image and those without lie in memories of their own. So the pages of what is on the
host already, weights above all, are given back before a keeper has saved the rest, and whoever
waits for them can fill them meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import NoReturn, cast

from gpupool._core import ModelMemory, Page, Region, SwapReport, Tag, Verify
from gpupool.errors import DaemonUnavailableError, DamagedMemoryError, GpupoolError, UsageError
from gpupool.keeper import Keeper
from gpupool.session import PageGrant, Session
from gpupool.trace import Values, span


class Residency:
    """The memory of one model and its standing with the arbiter."""

    def __init__(
        self,
        name: str,
        session: Session,
        before_swap_out: Callable[[], None] | None,
        verify: Verify,
    ) -> None:
        """Out and without regions."""
        self._name = name
        self._session = session
        self.before_swap_out = before_swap_out
        self.saved = ModelMemory(session.driver, session.page_bytes, verify=verify)
        """Of regions that swaps save by themselves, and of workspaces."""
        self._kept: ModelMemory | None = None
        self.regions: list[Region] = []
        self.keepers: list[Keeper] = []
        self.swap_ins = 0
        self.last_swap_in: SwapReport | None = None
        self.last_swap_out: SwapReport | None = None
        self._declared = 0
        self._parted = False  # some of the memory is there, or all of it for nothing

    @property
    def kept(self) -> ModelMemory:
        """Of regions that keepers save. Raises DriverError where it must be made and cannot."""
        if self._kept is None:
            self._kept = ModelMemory(self._session.driver, self._session.page_bytes)
        return self._kept

    def memory_of(self, region: Region) -> ModelMemory:
        """Where a region of this model lies."""
        by_itself = region.image_bytes > 0 or region.tag == Tag.workspace
        return self.saved if by_itself else self.kept

    @property
    def pages_needed(self) -> int:
        """To be resident."""
        return self.saved.pages_needed + self._pages_kept

    @property
    def resident(self) -> bool:
        """Whether any of the memory is there."""
        return self.saved.resident or (self._kept is not None and self._kept.resident)

    @property
    def torn(self) -> bool:
        """Whether a failure left pages mapped; the next bring-in or give-up unmaps them."""
        return self._parted or any(m.torn for m in (self.saved, self._kept) if m is not None)

    @property
    def _pages_kept(self) -> int:
        return 0 if self._kept is None else self._kept.pages_needed

    def footprint_changed(self) -> None:
        """The arbiter must be told anew."""
        self._declared = 0

    def declare(self) -> None:
        """Tell the arbiter the footprint of the regions so far. Raises DoesNotFitError."""
        pages = self.pages_needed
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
        try:
            return self._bring_in(timeout_s)
        except DamagedMemoryError as error:
            raise DamagedMemoryError(f"model {self._name!r}: {error}") from None

    def _bring_in(self, timeout_s: float) -> SwapReport:
        if self.torn:
            self._leave()
        self.declare()
        early = _Early(self)
        with span(self._session.driver, f"lease wait {self._name}", {}):
            grant = self._session.acquire(timeout_s, early)
        values: Values = {"pages": len(grant.pages), "clean_pages": grant.clean}
        try:
            with span(self._session.driver, f"swap in {self._name}", values):
                report = self._arrive(grant, early)
                values.update(bytes=report.copied_bytes, zeroed_bytes=report.filled_bytes)
                if report.recopied_bytes:
                    values.update(recopied_bytes=report.recopied_bytes)
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
        if self.resident and not self.torn:
            if self.before_swap_out is not None:
                self.before_swap_out()
            for keeper in self.keepers:
                keeper.leaving()
        return self._leave()

    def leave_for_good(self) -> SwapReport:
        """Unmap and give the pages back; what keepers would have saved is lost once it is gone."""
        if self.resident and not self.torn and self.before_swap_out is not None:
            self.before_swap_out()
        return self._leave(for_good=True)

    def close(self) -> None:
        """The model has left for good."""
        for keeper in self.keepers:
            keeper.close()
        self.keepers.clear()
        self.saved.close()
        self.return_images()
        self.regions = []
        self.saved = self._kept = cast("ModelMemory", _NoMemory())
        self._session.close()

    def return_images(self) -> None:
        """Take off the account what has gone of host images since the last call."""
        gone_bytes = self.saved.take_gone_image_bytes()
        if gone_bytes > 0:
            with contextlib.suppress(DaemonUnavailableError):  # it counts nothing any more
                self._session.return_host_memory(gone_bytes)

    def _arrive(self, grant: PageGrant, early: _Early) -> SwapReport:
        # The clean ones first for what is zeroed throughout.
        count, pages = self._pages_kept, grant.pages[early.taken :]
        reports = [early.report] if early.report is not None else []
        if len(grant.pages) != self.pages_needed:
            raise UsageError(f"{len(grant.pages)} pages were granted and {self.pages_needed} asked")
        try:
            if count > 0:
                reports.append(self.kept.swap_in(pages[:count], min(grant.clean, count)))
            if len(pages) > count:
                reports.append(self.saved.swap_in(pages[count:], max(0, grant.clean - count)))
            for keeper in self.keepers:
                keeper.arrived()
            return reduce(add, reports)
        except BaseException:
            if self.resident:
                self._parted = True
                with contextlib.suppress(Exception):  # the next bring-in or give-up tries again
                    self._unmap()
            raise

    def _leave(self, *, for_good: bool = False) -> SwapReport:
        values: Values = {}
        with span(self._session.driver, f"swap out {self._name}", values):
            report = self._unmap(for_good=for_good)
            values.update(pages=report.pages, bytes=report.copied_bytes)
        self.last_swap_out = report
        self.return_images()
        # The memory is given up all the same; the next acquire says what is wrong.
        with contextlib.suppress(DaemonUnavailableError):
            self._session.give_back(report)
        return report

    def _unmap(self, *, for_good: bool = False) -> SwapReport:
        """Also goes on where an attempt that failed has left off."""
        kept = self._kept
        keeps = kept is not None and (kept.resident or kept.torn)
        reports = []
        if self.saved.resident or self.saved.torn:
            gone = self._mapped(self.saved) if keeps else []
            reports.append(self.saved.swap_out())
            self._parted = keeps
            if gone:
                with contextlib.suppress(DaemonUnavailableError):
                    self._session.release(gone, leaving=True)
        if kept is not None and keeps:
            for keeper in self.keepers:
                keeper.settle() if for_good else keeper.save()
            reports.append(kept.swap_out())
        self._parted = False
        for keeper in self.keepers:
            keeper.forsake() if for_good else keeper.left()
        return reduce(add, reports)

    def _mapped(self, memory: ModelMemory) -> list[int]:
        of = [region for region in self.regions if self.memory_of(region) is memory]
        return [page for region in of for page in region.page_handles]

    def _bytes_of(self, tag: Tag) -> int:
        return sum(region.bytes for region in self.regions if region.tag == tag)


class _Early:
    """What is saved by itself, weights above all, can be there before what keepers bring."""

    def __init__(self, residency: Residency) -> None:
        self._of = residency
        self.report: SwapReport | None = None
        """Of what has begun."""
        self._stuck = False

    @property
    def pages(self) -> int:
        """How many it takes; 0 if there is nothing to begin with."""
        return self._of.saved.pages_needed if self._of._pages_kept > 0 else 0

    @property
    def taken(self) -> int:
        """How many of the pages granted are in use already, from the first on."""
        return 0 if self.report is None else self.pages

    def begin(self, pages: list[Page]) -> None:
        """Bring it in. Raises DriverError or DamagedMemoryError."""
        with span(self._of._session.driver, f"swap in {self._of._name}, early", {}):
            self.report = self._of.saved.swap_in(pages)

    def undo(self) -> bool:
        """Unmap it again; False if the driver does not let it be."""
        self.report = None
        saved = self._of.saved
        try:
            if (saved.resident or saved.torn) and not self._stuck:
                saved.swap_out()
        except GpupoolError:
            # The next bring-in or give-up tries again, and then the pages go back.
            self._stuck = self._of._parted = True
        except BaseException:  # interrupted
            self._stuck = self._of._parted = saved.resident or saved.torn
            raise
        return not self._stuck


class _NoMemory:
    """Stands for that of a closed model."""

    pages_needed = 0
    resident = False
    torn = False

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError("the model is closed")
