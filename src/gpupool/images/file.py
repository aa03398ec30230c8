"""Writing and reading files of images: whole or not at all, and every byte against its digest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gpupool.errors import DamagedMemoryError, ImageDamagedError, ImageWriteError
from gpupool.images import digests
from gpupool.images import format as f
from gpupool.images.direct import DirectFile
from gpupool.images.reading import THREADS, read_parts

UNFINISHED = ".image-"
"""What the names of files begin with that are being written, under an exclusive lock."""
_WRITE_BYTES = 4 * f.CHUNK_BYTES
Progress = Callable[[int, int], None]
Room = Callable[[int, Callable[[], None]], None]
"""Sees to it that there is room for so many bytes, and calls what allocates them."""


def anywhere(size_bytes: int, allocate: Callable[[], None]) -> None:
    """Wherever the disk has room."""
    allocate()


def write_image(
    path: Path,
    key: dict[str, str],
    parts: Sequence[tuple[str, memoryview]],
    places: Sequence[f.Place],
    *,
    known: Sequence[digests.Known] | None = None,
    shape: f.Shape | None = None,
    room: Room = anywhere,
    progress: Progress = lambda done, of: None,
) -> int:
    """Write the parts, each a tag and its bytes, as a file of images; returns its size in bytes.

    The bytes must not change meanwhile. ``known`` is what those of each part should digest to. The
    file is there when all of it is on the disk, and before that whatever was at ``path``. ``room``
    is called before anything is written, and may raise; ``progress`` hears how many bytes of how
    many are. Raises DamagedMemoryError before that if bytes are not what they should be, and
    ImageWriteError, which says how many bytes are needed.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        chunks = [digests.made(threads, data) for _, data in parts]
    for (tag, data), those, due in zip(parts, chunks, known or [()] * len(parts), strict=True):
        if (wrong := digests.first_wrong(data, those, due)) is not None:
            raise DamagedMemoryError(
                f"bytes {wrong[0]} to {wrong[1]} of a region of {tag} are not what was saved, and "
                f"{path} is not written: memory is faulty, or something wrote to the image"
            )
    manifest = f.Manifest(
        f.FORMAT,
        f.CHUNK_BYTES,
        key,
        [
            f.Part(tag, len(data), "".join(f"{one:016x}" for one in those))
            for (tag, data), those in zip(parts, chunks, strict=True)
        ],
        list(places),
        shape or f.Shape(),
    )
    header = f.header_of(manifest)
    begins = f.starts(manifest)
    total = len(header) + begins[-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _replacing(path) as fd:
            room(total, partial(os.posix_fallocate, fd, 0, total))  # a full disk says so now
            _write(fd, 0, memoryview(header))
            done = 0
            for begin, (_, data) in zip(begins, parts, strict=False):
                for start in range(0, len(data), _WRITE_BYTES):
                    with data[start : start + _WRITE_BYTES] as piece:
                        _write(fd, len(header) + begin + start, piece)
                        done += len(piece)
                    progress(done, sum(len(each) for _, each in parts))
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        return total
    # Not within: the first error knows frames that look at the images.
    raise ImageWriteError(f"{path} cannot be written: {reason}; it has {total} bytes")


class ImageFile:
    """A file of images that is open for reading; close it, or use it in a ``with`` block.

    Meanwhile it has a shared lock (flock), so that whoever makes room leaves it alone. It is read
    past the page cache, unless ``is_direct`` says that its file system cannot.
    """

    def __init__(self, path: Path) -> None:
        """Read the manifest.

        Raises FileNotFoundError, OSError if it cannot be opened, ImageReadError, ImageDamagedError.
        """
        self._path = path
        self._file = DirectFile(path)
        try:
            lock(self._file.fileno(), fcntl.LOCK_SH)
            begin = self._file.read(0, f.ALIGNMENT_BYTES)
            self._data = f.header_bytes(str(path), begin)
            header = self._file.read(0, self._data)
            self.manifest = f.read_header(str(path), header)
            wanted = self._data + f.starts(self.manifest)[-1]
            if (found := os.fstat(self._file.fileno()).st_size) != wanted:
                raise ImageDamagedError(f"{path} has {found} bytes and should have {wanted}")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_direct(self) -> bool:
        """Whether all that was read until now came past the page cache."""
        return self._file.is_direct

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._file.close()

    def read_into(
        self, targets: Sequence[memoryview], *, progress: Progress = lambda done, of: None
    ) -> None:
        """Read each part into a target of its length, with several threads.

        A target begins at a multiple of 4096 bytes of memory, or it is a UsageError. What is in the
        targets counts for nothing after an error, and nobody writes there any more: raises
        ImageDamagedError as soon as a chunk is not what was written, and ImageReadError.
        """
        parts = self.manifest.parts
        if [len(target) for target in targets] != [part.size_bytes for part in parts]:
            raise ImageDamagedError(f"{self._path} holds parts of other lengths than asked for")
        self._read(targets, progress)

    def verify(self) -> None:
        """Read all of it, and keep nothing. Raises ImageDamagedError or ImageReadError."""
        self._read(None, lambda done, of: None)

    def _read(self, targets: Sequence[memoryview] | None, progress: Progress) -> None:
        total = sum(part.size_bytes for part in self.manifest.parts)
        done = 0

        def heard(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            progress(done, total)

        read_parts(self._file, self.manifest, self._data, targets, heard)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[int]:
    """A new file that takes the place of ``path`` once all of it is on the disk."""
    fd, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        try:
            lock(fd, fcntl.LOCK_EX)  # whoever finds it without a lock may remove it
            yield fd
            os.fsync(fd)
            with contextlib.suppress(OSError):  # reads do not look for it in the page cache
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock(fd: int, how: int) -> bool:
    """Lock a file as ``flock`` does; False if somebody else has it and ``how`` is not to wait.

    True also on a file system without locks, where nobody can be told. Raises OSError.
    """
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return True


def _write(fd: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
