"""Warm pages that are given back: because others need them, or the model is about to change."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator

from gpupool._core import ModelMemory
from gpupool.errors import DaemonUnavailableError, GpupoolError
from gpupool.session import Session


def released(session: Session, handles: Collection[int]) -> None:
    """Say that these pages of a model that leaves, or is out, are not mapped any more."""
    if handles:
        with contextlib.suppress(DaemonUnavailableError):  # which its pages are free of anyway
            session.release(list(handles), leaving=True)


class WarmPages:
    """Those of one model, which one thread at a time gives back."""

    def __init__(self, session: Session, handles: Callable[[], list[int]]) -> None:
        """``handles`` are of all pages that the memory has mapped."""
        self._session = session
        self._handles = handles
        self._giving = threading.Lock()
        self._torn: set[int] = set()  # what was there as a failure tore it, until all of it goes

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

    def settled(self) -> None:
        """All pages were given back in another way."""
        self._torn.clear()

    def _give(self, memory: ModelMemory, pages: int) -> None:
        if pages == 0:
            return
        had = set(self._handles())
        try:
            released(self._session, memory.cool(pages))
        except GpupoolError:
            if not memory.torn:
                raise
            self._torn |= had
            self._give_torn(memory)
        except BaseException:  # interrupted, perhaps as they had gone
            if not memory.torn:
                released(self._session, had.difference(self._handles()))
            raise

    def _give_torn(self, memory: ModelMemory) -> None:
        self._torn.update(self._handles())
        memory.swap_out()
        released(self._session, self._torn)
        self._torn.clear()
