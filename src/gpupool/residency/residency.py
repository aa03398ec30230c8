"""How a model's memory comes and goes: what its gate asks for, all or nothing.

The pages of what is on the host already, weights above all, go back before the rest is saved, for
whoever waits to fill them. What keepers save goes last, and lies in a memory of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from gpupool._core import ModelMemory, Region, SwapReport, Tag, Verify
from gpupool.errors import DaemonUnavailableError, DamagedMemoryError, GpupoolError, UsageError
from gpupool.host_images import give_back
from gpupool.keeper import Keeper
from gpupool.residency.ahead import Ahead, arrive
from gpupool.residency.closed import NO_MEMORY
from gpupool.residency.damage import told
from gpupool.residency.early import EarlyArrival
from gpupool.residency.figures import figures_of, figures_of_leaving, warn_of_unmarked
from gpupool.residency.footprint import Footprint
from gpupool.residency.parking import Parking
from gpupool.residency.warm_pages import WarmPages, released
from gpupool.session import PageGrant, Session
from gpupool.sharing.images import SharedImages
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
        self.sharing = SharedImages(session, session.page_bytes)
        self.regions: list[Region] = []
        self.keepers: list[Keeper] = []
        self.swap_ins = 0
        self.last_swap_in: SwapReport | None = None
        self.last_swap_out: SwapReport | None = None
        self.footprint = Footprint(name, session, self._unshared)
        self._parted = False  # some of the memory is there, or all of it for nothing
        self._warm = WarmPages(session, lambda: self._mapped(self.saved))
        self.parking = Parking(name, session, self.return_images)

    @property
    def kept(self) -> ModelMemory:
        """Of regions that keepers save. Raises DriverError where it must be made and cannot."""
        if self._kept is None:
            self._kept = ModelMemory(self._session.driver, self._session.page_bytes)
        return self._kept

    def memory_of(self, region: Region) -> ModelMemory:
        """Where a region of this model lies."""
        by_itself = region.image_bytes > 0 or region.parked or region.tag == Tag.workspace
        return self.saved if by_itself else self.kept

    @property
    def pages_needed(self) -> int:
        """To be resident."""
        return self.saved.pages_needed + (0 if self._kept is None else self._kept.pages_needed)

    @property
    def warm_pages(self) -> int:
        """Pages that it has while it is out."""
        return self.saved.warm_pages

    @property
    def resident(self) -> bool:
        """Whether any of the memory is there."""
        return self.saved.resident or (self._kept is not None and self._kept.resident)

    @property
    def torn(self) -> bool:
        """Whether a failure left pages mapped; the next bring-in or give-up unmaps them."""
        return self._parted or any(m.torn for m in (self.saved, self._kept) if m is not None)

    def declare(self) -> None:
        """Tell the arbiter the footprint of the regions so far. Raises DoesNotFitError."""
        pages, warmable = self.pages_needed, self.saved.warmable_pages
        self.footprint.declare(pages, warmable, self.regions, self.sharing)

    def set_idle(self, idle: bool) -> None:
        """Pass on whether there is unfinished work."""
        self._session.set_idle(idle)

    def bring_in(self, timeout_s: float, ahead: Ahead | None = None) -> SwapReport:
        """Get pages and restore every region."""
        tries = 2 if self.sharing else 1  # a page of others' may be wrong, and the image right
        while True:
            try:
                return self._bring_in(timeout_s, ahead)
            except DamagedMemoryError as error:
                tries -= 1
                if tries == 0:
                    raise DamagedMemoryError(f"model {self._name!r}: {error}") from None

    def _bring_in(self, timeout_s: float, ahead: Ahead | None) -> SwapReport:
        if self.torn:
            self._leave()
        self.declare()
        deadline_s = time.monotonic() + timeout_s
        wanted = None if ahead is None else ahead.is_wanted
        # Before its lease: who waits for host memory has no pages that others wait for.
        with told(self._session):
            self.parking.bring_back(self.saved, timeout_s, wanted)
        early = EarlyArrival(self.saved, ahead, shares=bool(self.sharing))
        with span(self._session.driver, f"lease wait {self._name}", {}), told(self._session):
            try:
                left_s = max(0.0, deadline_s - time.monotonic())
                grant = self._session.acquire(left_s, early, wanted)
            finally:
                self._parted = early.stuck
        values: Values = {"pages": len(grant.pages), "clean_pages": grant.clean}
        try:
            with span(self._session.driver, f"swap in {self._name}", values), told(self._session):
                report = self._arrive(grant, early, ahead)
                values.update(figures_of(report))
        except BaseException:
            self._give_back_all()
            raise
        self.swap_ins += 1
        self.last_swap_in = report
        with contextlib.suppress(DaemonUnavailableError):
            self.sharing.tell(self.regions)
            self._session.arrived(report)  # the memory is here all the same
        return report

    def give_up(self, keep: int = 0, park_s: float | None = None) -> SwapReport:
        """Save, unmap and give the pages back, but for ``keep`` of those that can be warm.

        With ``park_s`` the images go as well.
        """
        if self.resident and not self.torn:
            if self.before_swap_out is not None:
                self.before_swap_out()
            for keeper in self.keepers:
                keeper.leaving()
        report = self._leave(keep)
        if park_s is not None:
            self.park(park_s)
        return report

    def park(self, deadline_s: float | None) -> None:
        """Let the images go to a file within ``deadline_s``, unless that is None, and say so."""
        self.parking.park_cold(self.saved, self._unshared(), deadline_s, self.cold())

    def _unshared(self) -> list[Region]:
        """But for those whose memory others may have too."""
        return [region for region in self.regions if region not in self.sharing]

    def leave_for_good(self) -> SwapReport:
        """Unmap and give the pages back; what keepers would have saved is lost once it is gone."""
        if self.resident and not self.torn and self.before_swap_out is not None:
            self.before_swap_out()
        return self._leave(for_good=True)

    def hurry(self) -> None:
        """What comes ahead is waited for now."""
        with contextlib.suppress(DaemonUnavailableError):  # of which who waits there hears too
            self._session.hurry()

    def cool(self, pages: int) -> None:
        """Give so many warm pages back, or what there is of them; they are not needed for a lease.

        It is asked of a model that is out, or has no answer to its acquire yet.
        """
        self._warm.cool(self.saved, pages)

    def cold(self) -> AbstractContextManager[None]:
        """Keep a model that is out without warm pages for the length of a ``with`` block.

        Raises DriverError where they cannot be unmapped.
        """
        return self._warm.none_of(self.saved)

    def _give_back_all(self) -> None:
        """What is still mapped goes back once it is not."""
        if self.torn:
            return
        self._parted = True
        if self.resident:  # it was interrupted as it had come
            return
        with contextlib.suppress(GpupoolError):
            self.saved.cool(self.saved.warm_pages)
            with contextlib.suppress(DaemonUnavailableError):
                self._session.give_back(None)
            self._parted = False

    def close(self) -> None:
        """The model has left for good."""
        with self.cold():
            pass
        for keeper in self.keepers:
            keeper.close()
        self.keepers.clear()
        self.parking.end()  # what is being read back goes with the rest
        self.saved.close()
        self.sharing.close()
        self.return_images()
        self.regions = []
        self.saved = self._kept = NO_MEMORY
        self._session.close()
        self.parking.close()  # behind whoever waits still, who hears that the session has ended

    def return_images(self) -> None:
        """Take off the account what has gone of host images since the last call."""
        self.sharing.gone(self.saved.take_gone_shared_bytes())
        give_back(self._session, self.saved.take_gone_image_bytes())

    def _arrive(self, grant: PageGrant, early: EarlyArrival, ahead: Ahead | None) -> SwapReport:
        # The clean ones first for what is zeroed throughout.
        count = self.pages_needed - self.saved.pages_needed
        needed = self.pages_needed - self.warm_pages - len(grant.shared)
        if len(grant.pages) != needed:
            raise UsageError(f"{len(grant.pages)} pages were granted and {needed} asked")
        report = early.report
        try:
            if count > 0:
                report += self.kept.swap_in(grant.pages[:count], min(grant.clean, count))
            if self.saved.pages_needed > 0:
                rest = PageGrant(grant.pages[count:], max(0, grant.clean - count), grant.shared)
                report += arrive(self.saved, rest, ahead, self._session)
            for keeper in self.keepers:
                keeper.arrived()
            return report
        except BaseException:
            if self.resident:
                self._parted = True
                with contextlib.suppress(Exception):  # the next bring-in or give-up tries again
                    self._unmap()
                    self._parted = False
            raise

    def _leave(self, keep: int = 0, *, for_good: bool = False) -> SwapReport:
        values: Values = {}
        again = self._parted  # of what was told before it nobody knows: giving all back settles it
        with span(self._session.driver, f"swap out {self._name}", values):
            report = self.last_swap_out = self._unmap(0 if again else keep, for_good=for_good)
            values.update(figures_of_leaving(report))
        self.return_images()
        # The memory is given up all the same; the next acquire says what is wrong. What was
        # interrupted may have been told: then there is nothing to give back, which is refused.
        with contextlib.suppress(DaemonUnavailableError, *([UsageError] if again else [])):
            self._session.give_back(report, self.warm_pages)
        self._warm.settled()
        self._parted = False
        return report

    def _unmap(self, keep: int = 0, *, for_good: bool = False) -> SwapReport:
        """Also goes on where an attempt that failed has left off; it is parted then still."""
        kept = self._kept
        keeps = kept is not None and (kept.resident or kept.torn)
        report = SwapReport()
        parted, self._parted = self._parted, True  # also if it is interrupted from here on
        try:
            if self.saved.resident or self.saved.torn:
                while drained := self.saved.drain(keep):
                    released(self._session, drained)
                there = set(self._mapped(self.saved))
                report += self.saved.swap_out(keep)
                parted = True  # what is left cannot stay
                warn_of_unmarked(self._name, report)
                if keeps or self.warm_pages > 0:
                    released(self._session, there.difference(self._mapped(self.saved)))
            else:
                self.saved.cool(self.warm_pages)
            if kept is not None and keeps:
                for keeper in self.keepers:
                    keeper.settle() if for_good else keeper.save()
                had = self._mapped(kept)
                report += kept.swap_out()
                if self.warm_pages > 0:
                    released(self._session, had)
        except GpupoolError:
            self._parted = parted
            raise
        for keeper in self.keepers:
            keeper.forsake() if for_good else keeper.left()
        return report

    def _mapped(self, memory: ModelMemory) -> list[int]:
        return [p for r in self.regions if self.memory_of(r) is memory for p in r.page_handles]
