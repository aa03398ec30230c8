"""Host memory: handed out as memfds under a budget, and accounted for."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

from gpupool.errors import ProtocolError, RefusedError
from gpupool.host_images import in_system_pages
from gpupool.sharing.store import HostStore


class HostLedger:
    """How much of a budget of host memory each model has."""

    def __init__(self, budget_bytes: int) -> None:
        """Start with nothing handed out."""
        self._budget_bytes = budget_bytes
        self._held_bytes: dict[int, int] = {}
        self._files: dict[int, set[int]] = {}  # inodes of memfds
        self.store = HostStore()
        """Of images that several may have."""

    @property
    def bytes(self) -> int:
        """Handed out to all, in whole pages of the system."""
        return sum(self._held_bytes.values()) + self.store.held_bytes

    @property
    def budget_bytes(self) -> int:
        """What can be handed out."""
        return self._budget_bytes

    @property
    def free_bytes(self) -> int:
        """Of it, what is left."""
        return self._budget_bytes - self.bytes

    def refusal(self, size_bytes: int, why: str = "") -> RefusedError:
        """The error for so much, of which there is less; ``why`` nobody makes room."""
        return RefusedError(
            f"{size_bytes} bytes of host memory were asked for and {self.free_bytes} of the host "
            f"budget are free{why}: raise the host budget"
        )

    def held_bytes(self, key: int) -> int:
        """Handed out to one worker, for it alone."""
        return self._held_bytes.get(key, 0)

    def holds(self, key: int) -> bool:
        """Whether a worker has any."""
        return self.held_bytes(key) > 0 or bool(self.store.images_of(key))

    def hand_out(self, key: int, size_bytes: int) -> int:
        """A memfd of ``size_bytes``, the caller's to close. Raises RefusedError."""
        if size_bytes == 0:
            raise RefusedError("host memory has at least one byte")
        if in_system_pages(size_bytes) > self.free_bytes:
            raise self.refusal(size_bytes)
        fd = -1
        try:
            fd = os.memfd_create("gpupool-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size_bytes)
            # What is accounted for stays what is held.
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise RefusedError(f"no host memory: {error.strerror}") from error
        self._held_bytes[key] = self.held_bytes(key) + in_system_pages(size_bytes)
        self._files.setdefault(key, set()).add(os.fstat(fd).st_ino)
        return fd

    def hand_out_all(self, key: int, sizes_bytes: Sequence[int]) -> list[int]:
        """A memfd of each size, or none of them. Raises RefusedError."""
        total_bytes = sum(map(in_system_pages, sizes_bytes))
        if total_bytes > self.free_bytes:
            raise self.refusal(total_bytes)
        fds: list[int] = []
        try:
            for size_bytes in sizes_bytes:
                fds.append(self.hand_out(key, size_bytes))
        except RefusedError:
            for fd, size_bytes in zip(fds, sizes_bytes, strict=False):
                os.close(fd)
                self.returned(key, size_bytes)
            raise
        return fds

    def require_own(self, key: int, fd: int, size_bytes: int) -> None:
        """Raises ProtocolError unless the descriptor is of a memfd of that size made for it."""
        status = os.fstat(fd)
        own = status.st_ino in self._files.get(key, ()) and status.st_size == size_bytes
        if not own or size_bytes > self.held_bytes(key):
            raise ProtocolError("a worker shares memory that was not made for it")

    def settle(self, key: int, number: int, *, done: bool, gone: bool) -> None:
        """An image of a worker is shared from now on, or is not. Raises ProtocolError."""
        self._require_image(key, number)
        size_bytes = self.store.settle(number, done=done, gone=gone)
        self._held_bytes[key] = max(0, self.held_bytes(key) - size_bytes)

    def unshare(self, key: int, number: int) -> None:
        """A worker has an image no more. Raises ProtocolError."""
        self._require_image(key, number)
        self.store.release(number)

    def _require_image(self, key: int, number: int) -> None:
        if not self.store.is_of(number, key):
            raise ProtocolError("a worker spoke of an image that it does not share")

    def returned(self, key: int, size_bytes: int) -> None:
        """A worker has so much less. Raises ProtocolError if it does not have it."""
        if size_bytes == 0 or in_system_pages(size_bytes) > self.held_bytes(key):
            raise ProtocolError("a worker gave back host memory that it does not have")
        self._held_bytes[key] -= in_system_pages(size_bytes)

    def forget(self, key: int) -> None:
        """Nobody can touch what the worker had."""
        self._held_bytes.pop(key, None)
        self._files.pop(key, None)
        self.store.release_all(key)
