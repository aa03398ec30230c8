"""Host memory for images, from an arbiter that keeps account of it."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Protocol

from gpupool._core import Region
from gpupool.errors import DaemonUnavailableError


class HostMemorySource(Protocol):
    """What of a Session is about host memory."""

    def host_memory(self, size_bytes: int) -> int:
        """A memfd of that size; the caller closes it. Raises RefusedError or OSError."""

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more, in whole memfds."""


@contextlib.contextmanager
def host_memory(
    session: HostMemorySource,
    size_bytes: int,
    unused: Callable[[], bool] = lambda: True,
    take: Callable[[int], int] | None = None,
) -> Iterator[int]:
    """A memfd for an image, or -1 for no bytes. It goes back on an error if it is unused.

    ``take`` gets it of the session otherwise than at once.
    """
    if size_bytes == 0:
        yield -1
        return
    fd = (take or session.host_memory)(size_bytes)
    try:
        yield fd
    except BaseException:
        if unused():
            give_back(session, size_bytes)
        raise
    finally:
        os.close(fd)


def give_back(session: HostMemorySource, size_bytes: int) -> None:
    """So much, or nothing, is nowhere mapped any more; a daemon that has gone counts none of it."""
    if size_bytes > 0:
        with contextlib.suppress(DaemonUnavailableError):
            session.return_host_memory(size_bytes)


def lacks_image(region: Region, size_bytes: int) -> bool:
    """Whether the region's image is still too short for that size."""
    return region.missing_image_bytes(size_bytes) > 0


def in_system_pages(size_bytes: int) -> int:
    """Rounded up."""
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
