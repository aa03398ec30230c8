"""A bring-in that nobody waits for yet: a few pages at a time, at a share of the link.

A step that opens meanwhile has it hurry; a revoke ends it, unless somebody waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from gpupool._core import ModelMemory, SwapReport
from gpupool.errors import SwapCancelledError
from gpupool.session import PageGrant, Session

_BATCH_BYTES = 32 << 20  # or a page, between which it gives way, pauses, hurries or stops
_GIVES_WAY_S = 5.0  # for a batch: who comes so slowly is not on the link all the time
_POLL_S = 0.001


class Ahead:
    """How such a bring-in goes on. Thread safe."""

    def __init__(self, share: float, on_hurry: Callable[[], None]) -> None:
        """Copy for ``share`` of the time, more than 0 and at most 1; hear once if it hurries."""
        self._share = share
        self._on_hurry = on_hurry
        self._lock = threading.Lock()
        self._awake = threading.Event()  # from pauses, for good
        self._hurries = False
        self._stopped = False

    def hurry(self) -> None:
        """Somebody waits for it now: no more pauses, whoever stopped it."""
        with self._lock:
            first, self._hurries, self._stopped = not self._hurries, True, False
        self._awake.set()
        if first:
            self._on_hurry()

    def stop(self) -> None:
        """It is not wanted any more, unless somebody waits for it."""
        with self._lock:
            self._stopped = not self._hurries
        self._awake.set()

    @property
    def hurries(self) -> bool:
        """Whether somebody waits for it."""
        return self._hurries

    def is_wanted(self) -> bool:
        """Whether it was not stopped."""
        return not self._stopped

    def warm(
        self, memory: ModelMemory, grant: PageGrant, session: Session
    ) -> tuple[SwapReport, PageGrant]:
        """Fill what can be warm, with what is granted for it.

        Nothing is copied while somebody waits for another model that comes in, if it comes soon.
        Returns what it took, and what is left of the grant. Raises SwapCancelledError once stopped,
        DriverError or DamagedMemoryError.
        """
        report = SwapReport()
        left, warm = _split(grant, memory.warmable_pages - memory.warm_pages)
        most = max(1, _BATCH_BYTES // session.page_bytes)
        for pages, clean, shared in _in_batches(warm, memory.warm_pages, most):
            self._give_way(session)
            if self._stopped:
                raise SwapCancelledError("what was fetched ahead is not wanted any more")
            begun_s = time.monotonic()
            report += counted(self, partial(memory.warm, pages, clean, shared=list(shared)))
            taken_s = time.monotonic() - begun_s
            self._awake.wait(min(taken_s * (1 / self._share - 1), threading.TIMEOUT_MAX))
        return report, left

    def _give_way(self, session: Session) -> None:
        until_s = time.monotonic() + _GIVES_WAY_S
        while session.others_arrive() and time.monotonic() < until_s:
            if self._awake.wait(_POLL_S):
                return


def _split(grant: PageGrant, warmable: int) -> tuple[PageGrant, PageGrant]:
    """What is not for so many places that can be warm, clean pages first; and what is."""
    rest = len(grant.pages) + len(grant.shared) - warmable
    clean = min(grant.clean, rest)
    return (
        PageGrant(grant.pages[:rest], clean),
        PageGrant(grant.pages[rest:], grant.clean - clean, grant.shared),
    )


def _in_batches(grant: PageGrant, first: int, most: int) -> Iterator[PageGrant]:
    """For ``most`` places at a time from ``first`` on, the shared ones with what they have."""
    shared, used = dict(grant.shared), 0
    end = first + len(grant.pages) + len(shared)
    for begin in range(first, end, most):
        places = range(begin, min(begin + most, end))
        given = [(place, shared[place]) for place in places if place in shared]
        pages = grant.pages[used : used + len(places) - len(given)]
        yield PageGrant(pages, max(0, min(grant.clean - used, len(pages))), given)
        used += len(pages)


def arrive(
    memory: ModelMemory, grant: PageGrant, ahead: Ahead | None, session: Session
) -> SwapReport:
    """Have a memory on the pages that it lacks. Raises what ``Ahead.warm`` does."""
    report = SwapReport()
    if ahead is not None:
        report, grant = ahead.warm(memory, grant, session)
    shared = list(grant.shared)
    rest = partial(memory.swap_in, grant.pages, grant.clean, shared=shared)
    return report + counted(ahead, rest)


def counted(ahead: Ahead | None, arrive: Callable[[], SwapReport]) -> SwapReport:
    """What it took to ``arrive``: ahead of use, unless somebody waited for it as it began."""
    is_ahead = ahead is not None and not ahead.hurries
    report = arrive()
    return report.as_ahead() if is_ahead else report
