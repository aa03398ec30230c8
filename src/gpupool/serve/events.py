"""Cuts a server-sent event stream where an event ends. Pure."""

from __future__ import annotations

import re

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r(?!\n)")


class EventAligner:
    """Lets whole events pass at once and holds back the beginning of an unfinished one.

    So an error can be added after an engine died in the middle of an event, and the client
    still sees well-formed events only.
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """What may be sent on now that `chunk` has come; often all of it."""
        # The end of an event may lie across the border of two chunks.
        search_from = max(0, len(self._held) - 3)
        self._held += chunk
        end = 0
        for match in _EVENT_END.finditer(self._held, search_from):
            end = match.end()
        ready = bytes(self._held[:end])
        del self._held[:end]
        return ready

    def rest(self) -> bytes:
        """What is held back, for a stream that ended as it should."""
        rest = bytes(self._held)
        self._held.clear()
        return rest
