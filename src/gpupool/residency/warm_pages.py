"""Warm pages that are given back: because others need them, or the model is about to change."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from gpupool._core import ModelMemory
from gpupool.errors import DaemonUnavailableError, GpupoolError
from gpupool.session import Session


class WarmPages:
    """Those of one model, which one thread at a time gives back."""

    def __init__(self, session: Session, handles: Callable[[], list[int]]) -> None:
        """``handles`` are of all pages that the memory has mapped."""
        self._session = session
        self._handles = handles
        self._giving = threading.Lock()

    def cool(self, memory: ModelMemory, pages: int) -> None:
        """Give so many back, or what there is of them, and say what became of it."""
        with self._giving, contextlib.suppress(DaemonUnavailableError):
            with contextlib.suppress(GpupoolError):  # asked again later
                if memory.torn:
                    self._give_torn(memory)
                else:
                    self._give(memory, min(pages, memory.warm_pages))
            self._session.cooled()

    @contextlib.contextmanager
    def none_of(self, memory: ModelMemory) -> Iterator[None]:
        """Without any for the length of a ``with`` block. Raises DriverError."""
        with self._giving:
            self._give(memory, memory.warm_pages)
            yield

    def _give(self, memory: ModelMemory, pages: int) -> None:
        if pages == 0:
            return
        try:
            gone = memory.cool(pages)
        except GpupoolError:
            if not memory.torn:
                raise
            self._give_torn(memory)
            return
        with contextlib.suppress(DaemonUnavailableError):
            self._session.release(gone, leaving=True)

    def _give_torn(self, memory: ModelMemory) -> None:
        handles = self._handles()
        memory.swap_out()
        with contextlib.suppress(DaemonUnavailableError):
            self._session.release(handles, leaving=True)
