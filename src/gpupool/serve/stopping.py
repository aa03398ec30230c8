"""SIGINT and SIGTERM: the first asks for an orderly end, the second for one at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType

import anyio

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Takes both signals while it is entered, within a running event loop."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.forced = False
        self._asked = False
        self._on_first = on_first
        self._work = anyio.CancelScope()
        self._end = anyio.CancelScope()

    def __enter__(self) -> Stopping:
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def until_first_signal(self) -> anyio.CancelScope:
        """A scope that the first signal cancels."""
        return self._work

    def until_second_signal(self) -> anyio.CancelScope:
        """A scope that the second signal cancels."""
        return self._end

    def _on_signal(self) -> None:
        if self._asked:
            self.forced = True
            self._end.cancel()
        else:
            self._asked = True
            self._on_first()
            self._work.cancel()
