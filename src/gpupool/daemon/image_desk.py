"""Images that workers share: what they ask about them, and the answers."""

from __future__ import annotations

import os
from collections.abc import Iterable

from gpupool.daemon import protocol as p
from gpupool.daemon.workers import Sharing, Worker
from gpupool.errors import ProtocolError, RefusedError
from gpupool.host_budget.ledger import HostLedger

_EXTENTS_MAX = p.FDS_MAX  # in one SharedImage: each may be of another memfd


class ImageDesk:
    """Between workers and the memory that their images have in common."""

    def __init__(self, host: HostLedger, page_bytes: int) -> None:
        """``page_bytes`` is what one hash is of."""
        self._host = host
        self._page_bytes = page_bytes

    def heard(
        self,
        worker: Worker,
        key: int,
        message: p.ShareImage | p.ImageSettled | p.ImageUnshared,
        fd: int,
    ) -> None:
        """Act on what a worker says. Raises ProtocolError or RefusedError."""
        match message:
            case p.ShareImage():
                self._share(worker, key, message, fd)
            case p.ImageSettled():
                self._host.settle(key, message.number, done=message.done, gone=message.gone)
            case p.ImageUnshared():
                self._host.unshare(key, message.number)

    def _share(self, worker: Worker, key: int, message: p.ShareImage, fd: int) -> None:
        """Take hashes in and, with the last of them, answer; ``fd`` is the caller's, or -1."""
        if fd >= 0:
            forget(worker)  # what it was interrupted in
            worker.sharing = Sharing(os.dup(fd), message.size_bytes)
        asked = worker.sharing
        if asked is None:
            raise ProtocolError("a worker sends the memfd of the image that it shares")
        asked.contents += message.contents
        is_over = True
        try:
            if asked.size_bytes != message.size_bytes:
                raise ProtocolError("a worker changed its mind about the size of an image")
            if len(asked.contents) * self._page_bytes > asked.size_bytes:
                raise ProtocolError("a worker told of more pages than its image has")
            self._host.require_own(key, asked.fd, asked.size_bytes)
            if message.last:
                self._answer(worker, key, asked)
            is_over = message.last
        finally:
            if is_over:
                forget(worker)

    def contents(self, key: int, shared: Iterable[tuple[int, int]]) -> dict[int, bytes]:
        """What the pages of a worker's images have, by place. Raises ProtocolError."""
        shared = list(shared)
        if not all(self._host.store.is_of(number, key) for number, _ in shared):
            raise ProtocolError("a worker declared an image that it does not share")
        return self._host.store.contents_at(shared)

    def _answer(self, worker: Worker, key: int, asked: Sharing) -> None:
        store = self._host.store
        try:
            number, extents = store.offer(
                key, asked.fd, asked.size_bytes, self._page_bytes, asked.contents
            )
        except OSError as error:
            raise RefusedError(f"no image can be shared: {error.strerror}") from None
        messages: list[tuple[p.SharedImage, list[int]]] = []
        try:
            for start in range(0, max(1, len(extents)), _EXTENTS_MAX):  # also of no bytes
                part = extents[start : start + _EXTENTS_MAX]
                segments = sorted({extent.segment for extent in part})
                places = [
                    (segments.index(extent.segment), extent.offset, extent.size_bytes)
                    for extent in part
                ]
                last = start + len(part) == len(extents)
                messages.append((p.SharedImage(number, places, last), []))
                for segment in segments:
                    messages[-1][1].append(os.dup(store.fd(segment)))
        except OSError as error:
            for _, fds in messages:
                for other in fds:
                    os.close(other)
            store.release(number)
            raise RefusedError(f"no image can be shared: {error.strerror}") from None
        for message, fds in messages:
            worker.peer.say(message, fds)


def forget(worker: Worker) -> None:
    """What a worker began to tell of an image, it does no more."""
    if worker.sharing is not None:
        os.close(worker.sharing.fd)
        worker.sharing = None
