"""A bring-in that nobody waits for yet: a few pages at a time, at a share of the link.

A step that opens meanwhile has it hurry; a revoke ends it, unless somebody waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from gpupool._core import ModelMemory, Page, SwapReport
from gpupool.errors import SwapCancelledError
from gpupool.session import Session

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
        self, memory: ModelMemory, pages: list[Page], clean: int, session: Session
    ) -> tuple[SwapReport, list[Page], int]:
        """Fill what can be warm, of ``pages`` of which the first ``clean`` read as zeros.

        Nothing is copied while somebody waits for another model that comes in, if it comes soon.
        Returns what it took, and the pages that are left, with how many of them are clean. Raises
        SwapCancelledError once stopped, DriverError or DamagedMemoryError.
        """
        report = SwapReport()
        first = len(pages) - min(len(pages), memory.warmable_pages - memory.warm_pages)
        batch = max(1, _BATCH_BYTES // pages[0].bytes) if pages else 1
        for begin in range(first, len(pages), batch):
            self._give_way(session)
            if self._stopped:
                raise SwapCancelledError("what was fetched ahead is not wanted any more")
            end = min(begin + batch, len(pages))
            begun_s, part = time.monotonic(), pages[begin:end]
            report += counted(self, partial(memory.warm, part, max(0, min(clean, end) - begin)))
            taken_s = time.monotonic() - begun_s
            self._awake.wait(min(taken_s * (1 / self._share - 1), threading.TIMEOUT_MAX))
        return report, pages[:first], min(clean, first)

    def _give_way(self, session: Session) -> None:
        until_s = time.monotonic() + _GIVES_WAY_S
        while session.others_arrive() and time.monotonic() < until_s:
            if self._awake.wait(_POLL_S):
                return


def counted(ahead: Ahead | None, arrive: Callable[[], SwapReport]) -> SwapReport:
    """What it took to ``arrive``: ahead of use, unless somebody waited for it as it began."""
    is_ahead = ahead is not None and not ahead.hurries
    report = arrive()
    return report.as_ahead() if is_ahead else report
