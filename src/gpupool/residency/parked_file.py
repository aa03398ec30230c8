"""A file that images are parked in: nobody else can open it, and with its owner it is gone.

It is written and read past the page cache where the file system can, by several threads, each chunk
with a digest that is made as it is written and looked at as it is read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from gpupool._core import DIGEST_PIECE_BYTES, digest
from gpupool.errors import DamagedMemoryError, ImageWriteError

_ALIGNMENT_BYTES = 4096  # of direct reads and writes
_THREADS = 8
# Of an open, a file system without unnamed files; of any call, one without direct access.
_NO_UNNAMED = frozenset({errno.EISDIR, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL})
_NOT_DIRECT = frozenset({errno.EINVAL, errno.ENOTSUP})


class Part(NamedTuple):
    """Some bytes of the file, from a multiple of 4096 on, and the memory that they are of."""

    offset: int
    memory: memoryview
    digests: list[int]
    """Of every chunk; filled as it is written."""


class ParkedFile:
    """One such file, open. Of one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Make it in a folder. Raises ImageWriteError."""
        self._folder = folder
        self._is_direct = False
        self.size_bytes = 0
        """On the disk."""
        try:
            self._fd = _open_unnamed(folder)
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """With it goes what is in it; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def reserve(self, size_bytes: int) -> None:
        """Be so long, on the disk too: a full one says so now. Raises ImageWriteError."""
        try:
            os.ftruncate(self._fd, size_bytes)
            os.posix_fallocate(self._fd, 0, size_bytes)
        except OSError as error:
            raise self._unwritable(error) from None
        self.size_bytes = size_bytes
        # Not before: where the file system cannot reserve, the library writes single bytes.
        with contextlib.suppress(OSError):
            self._set_direct(True)

    def write(self, parts: Sequence[Part], go_on: Callable[[], None]) -> None:
        """Write the memory of each, and fill in its digests.

        ``go_on`` is asked before each chunk, and ends it by an error, which is raised once no
        thread writes any more. Raises ImageWriteError.
        """
        for part in parts:
            part.digests[:] = [0] * -(-len(part.memory) // DIGEST_PIECE_BYTES)

        def write(part: Part, chunk: int) -> None:
            go_on()
            start = chunk * DIGEST_PIECE_BYTES
            with part.memory[start : start + DIGEST_PIECE_BYTES] as data:
                part.digests[chunk] = digest(data)
                try:
                    self._transfer(os.pwritev, part.offset + start, data)
                except OSError as error:
                    raise self._unwritable(error) from None

        _by_threads(write, _chunks(parts))
        if not self._is_direct:  # what is parked is to take no memory
            with contextlib.suppress(OSError):
                os.fdatasync(self._fd)
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, parts: Sequence[Part], go_on: Callable[[], None]) -> None:
        """Read into the memory of each, and look at the digests; ``go_on`` as for ``write``.

        Raises DamagedMemoryError for what is not as it was written, or cannot be read.
        """

        def read(part: Part, chunk: int) -> None:
            go_on()
            start = chunk * DIGEST_PIECE_BYTES
            with part.memory[start : start + DIGEST_PIECE_BYTES] as data:
                try:
                    self._transfer(os.preadv, part.offset + start, data)
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise DamagedMemoryError(
                        f"images parked in {self._folder} cannot be read back: {reason}"
                    ) from None
                if digest(data) != part.digests[chunk]:
                    raise DamagedMemoryError(
                        f"images parked in {self._folder} are not what was written there, from "
                        f"byte {start} of a region on: the disk or memory is faulty"
                    )

        _by_threads(read, _chunks(parts))
        if not self._is_direct:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _transfer(
        self, call: Callable[[int, list[memoryview], int], int], offset: int, data: memoryview
    ) -> None:
        """What is behind the last multiple of 4096 goes by way of a page beside it."""
        whole = len(data) - len(data) % _ALIGNMENT_BYTES
        with data[:whole] as body:
            self._all(call, offset, body)
        if whole == len(data):
            return
        with mmap.mmap(-1, _ALIGNMENT_BYTES) as page, memoryview(page) as view:
            rest = len(data) - whole
            view[:rest] = data[whole:]
            self._all(call, offset + whole, view)
            if call is not os.pwritev:
                data[whole:] = view[:rest]

    def _all(
        self, call: Callable[[int, list[memoryview], int], int], offset: int, data: memoryview
    ) -> None:
        done = 0
        while done < len(data):
            with data[done:] as rest:
                try:
                    count = call(self._fd, [rest], offset + done)
                except OSError as error:
                    if error.errno not in _NOT_DIRECT or not self._is_direct:
                        raise
                    self._set_direct(False)  # for all threads, also those that come here as well
                    count = call(self._fd, [rest], offset + done)
            if count == 0:
                raise OSError(errno.EIO, "the file ends before it should")
            done += count

    def _set_direct(self, direct: bool) -> None:
        self._is_direct = False
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
        self._is_direct = direct

    def _unwritable(self, error: OSError) -> ImageWriteError:
        reason = error.strerror or str(error)
        return ImageWriteError(f"images cannot be parked in {self._folder}: {reason}")


def padded(size_bytes: int) -> int:
    """Up to where another part can begin."""
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _open_unnamed(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE | os.O_EXCL, 0o600)
    except OSError as error:
        if error.errno not in _NO_UNNAMED or not folder.is_dir():
            raise
    fd, name = tempfile.mkstemp(prefix=".parked-", dir=folder)
    try:
        Path(name).unlink()
    except BaseException:
        os.close(fd)
        raise
    return fd


def _chunks(parts: Sequence[Part]) -> Iterable[tuple[Part, int]]:
    for part in parts:
        for chunk in range(-(-len(part.memory) // DIGEST_PIECE_BYTES)):
            yield part, chunk


def _by_threads(work: Callable[[Part, int], None], chunks: Iterable[tuple[Part, int]]) -> None:
    """After an error no thread begins another chunk, and none works on one any more on return."""
    left = deque(chunks)
    wrong: list[BaseException] = []
    guard = threading.Lock()

    def run() -> None:
        while True:
            with guard:
                if not left or wrong:
                    return
                part, chunk = left.popleft()
            try:
                work(part, chunk)
            except BaseException as error:
                with guard:
                    wrong.append(error)

    working = min(_THREADS, len(left))
    with ThreadPoolExecutor(max(1, working), thread_name_prefix="gpupool-park") as threads:
        try:
            wait([threads.submit(run) for _ in range(working)])
        finally:  # also when it is interrupted
            with guard:
                left.clear()
    if wrong:
        del wrong[1:]
        raise wrong.pop()  # which nothing here refers to
