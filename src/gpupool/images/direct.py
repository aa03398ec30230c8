"""A file that is read past the page cache, where its file system can."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import mmap
import os
from pathlib import Path

from gpupool.errors import ImageReadError, UsageError
from gpupool.images.format import ALIGNMENT_BYTES

logger = logging.getLogger("gpupool")

# Of an open, a file system that has no direct reads; of a read, one that wants more alignment.
_REFUSALS = frozenset({errno.EINVAL, errno.ENOTSUP})


class DirectFile:
    """A file that is open for reading; any number of threads may read at once.

    Its bytes go from the disk to where they are wanted, by direct reads (O_DIRECT). Where the file
    system refuses those they go through the page cache, and from there as soon as they were read;
    ``is_direct`` tells, and a line on the ``gpupool`` logger at its debug level.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError or OSError."""
        self.path = path
        self.is_direct = True
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            self._fd = os.open(path, flags)
            self._note_refusal(error)

    def fileno(self) -> int:
        """The descriptor, -1 once it is closed."""
        return self._fd

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, size_bytes: int) -> bytes:
        """So many bytes from ``offset`` on, fewer where the file ends. Raises as ``fill`` does."""
        with mmap.mmap(-1, max(size_bytes, 1)) as memory:
            with memoryview(memory) as whole, whole[:size_bytes] as target:
                count = self.fill(offset, target)
            return memory[:count]

    def fill(self, offset: int, target: memoryview) -> int:
        """Read from ``offset`` on until the target is full or the file ends; how many bytes.

        Offset and the target's address must be multiples of ALIGNMENT_BYTES, or it is a UsageError:
        the system refuses what is not as it does what no direct read can do. What is behind the
        last multiple of a target comes by way of a page beside it. Raises ImageReadError with the
        byte at which the system refused.
        """
        if not target:
            return 0
        if offset % ALIGNMENT_BYTES or _address(target) % ALIGNMENT_BYTES:
            raise UsageError(f"direct reads are of and to multiples of {ALIGNMENT_BYTES} bytes")
        whole = len(target) - len(target) % ALIGNMENT_BYTES
        with target[:whole] as body:
            count = self._fill(offset, body)
        if count == whole < len(target):
            with mmap.mmap(-1, ALIGNMENT_BYTES) as memory:
                with memoryview(memory) as page:
                    rest = min(self._fill(offset + whole, page), len(target) - whole)
                target[whole : whole + rest] = memory[:rest]
            count += rest
        if not self.is_direct:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset, len(target), os.POSIX_FADV_DONTNEED)
        return count

    def _fill(self, offset: int, target: memoryview) -> int:
        done = 0
        while done < len(target):
            with target[done:] as rest:
                count = self._read_some(offset + done, rest)
            done += count
            # A direct read gives part of a block at the end of the file alone.
            if count == 0 or (self.is_direct and count % ALIGNMENT_BYTES):
                break
        return done

    def _read_some(self, offset: int, target: memoryview) -> int:
        try:
            return self._preadv(offset, target)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise self._unreadable(offset, error) from None
            # For all threads: those whose read is refused meanwhile come here as well.
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            self._note_refusal(error)
        try:
            return self._preadv(offset, target)
        except OSError as error:
            raise self._unreadable(offset, error) from None

    def _preadv(self, offset: int, target: memoryview) -> int:
        return os.preadv(self._fd, [target], offset)

    def _unreadable(self, offset: int, error: OSError) -> ImageReadError:
        reason = error.strerror or str(error)
        return ImageReadError(f"{self.path} cannot be read at byte {offset}: {reason}")

    def _note_refusal(self, error: OSError) -> None:
        if self.is_direct:
            self.is_direct = False
            reason = error.strerror or str(error)
            logger.debug("%s is read through the page cache: %s", self.path, reason)


def _address(target: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(target))
