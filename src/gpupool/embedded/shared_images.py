"""The images that the models of one process share."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from gpupool.sharing.images import Offer, Part, Place
from gpupool.sharing.store import HostStore


class EmbeddedImages:
    """Their memory, by what is in it. Thread safe."""

    def __init__(self, store: HostStore, lock: threading.Condition, page_bytes: int) -> None:
        """Those of a store that ``lock`` guards."""
        self._page_bytes = page_bytes
        self._store = store
        self._lock = lock

    def share(self, key: int, fd: int, size_bytes: int, contents: Sequence[bytes]) -> Offer:
        """What an image can be made of. Raises OSError."""
        with self._lock:
            number, extents = self._store.offer(key, fd, size_bytes, self._page_bytes, contents)
            fds: dict[int, int] = {}
            try:
                for segment in {extent.segment for extent in extents}:
                    fds[segment] = os.dup(self._store.fd(segment))
            except OSError:
                for other in fds.values():
                    os.close(other)
                self._store.release(number)
                raise
        return Offer(number, [Part(fds[e.segment], e.offset, e.size_bytes) for e in extents])

    def contents(self, shared: Sequence[Place]) -> dict[int, bytes]:
        """What the pages of images have, by their places."""
        with self._lock:
            return self._store.contents_at(shared)
