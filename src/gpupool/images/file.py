"""Writing and reading files of images: whole or not at all, and every byte against its digest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpupool._core import digest
from gpupool.errors import ImageDamagedError, ImageWriteError
from gpupool.images import format as f

THREADS = 8
UNFINISHED = ".image-"
"""What the names of files begin with that are being written, under an exclusive lock."""
_READ_BYTES = 4 * f.CHUNK_BYTES
Progress = Callable[[int, int], None]


def write_image(
    path: Path,
    key: dict[str, str],
    parts: Sequence[tuple[str, memoryview]],
    places: Sequence[f.Place],
    *,
    shape: f.Shape | None = None,
    room: Callable[[int], None] = lambda size_bytes: None,
    progress: Progress = lambda done, of: None,
) -> int:
    """Write the parts, each a tag and its bytes, as a file of images; returns its size in bytes.

    The bytes must not change meanwhile. The file is there when all of it is on the disk, and before
    that whatever was at ``path``. ``room`` is told the size before anything is written, and may
    raise; ``progress`` hears how many bytes of how many are. Raises ImageWriteError, which says how
    many bytes are needed.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        manifest = f.Manifest(
            f.FORMAT,
            f.CHUNK_BYTES,
            key,
            [f.Part(tag, len(data), _digests(threads, data)) for tag, data in parts],
            list(places),
            shape or f.Shape(),
        )
    header = f.header_of(manifest)
    begins = f.starts(manifest)
    total = len(header) + begins[-1]
    room(total)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _replacing(path) as fd:
            os.posix_fallocate(fd, 0, total)  # a full disk says so now
            _write(fd, 0, memoryview(header))
            done = 0
            for begin, (_, data) in zip(begins, parts, strict=False):
                for start in range(0, len(data), _READ_BYTES):
                    with data[start : start + _READ_BYTES] as piece:
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

    Meanwhile it has a shared lock (flock), so that whoever makes room leaves it alone.
    """

    def __init__(self, path: Path) -> None:
        """Read the manifest. Raises FileNotFoundError, ImageDamagedError or OSError."""
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            lock(self._fd, fcntl.LOCK_SH)
            begin = os.pread(self._fd, f.ALIGNMENT_BYTES, 0)
            self._data = f.header_bytes(str(path), begin)
            header = _read(self._fd, 0, self._data)
            self.manifest = f.read_header(str(path), header)
            wanted = self._data + f.starts(self.manifest)[-1]
            if (found := os.fstat(self._fd).st_size) != wanted:
                raise ImageDamagedError(f"{path} has {found} bytes and should have {wanted}")
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_into(
        self, targets: Sequence[memoryview], *, progress: Progress = lambda done, of: None
    ) -> None:
        """Read each part into a target of its length, with several threads.

        Past the page cache where the file system can and the target begins at a page of the system.
        What is in the targets counts for nothing after an error: raises ImageDamagedError as soon
        as a chunk is not what was written, and OSError.
        """
        parts = self.manifest.parts
        if [len(target) for target in targets] != [part.size_bytes for part in parts]:
            raise ImageDamagedError(f"{self._path} holds parts of other lengths than asked for")
        begins = f.starts(self.manifest)
        jobs = [
            (part, self._data + begin, target, start)
            for part, begin, target in zip(parts, begins, targets, strict=False)
            for start in range(0, part.size_bytes, _READ_BYTES)
        ]
        total = sum(part.size_bytes for part in parts)
        done = 0
        wrong: str | None = None
        with ThreadPoolExecutor(THREADS) as threads:
            pending = [threads.submit(self._fill, *job) for job in jobs]
            try:
                for one in pending:
                    size_bytes, wrong = one.result()
                    if wrong is not None:
                        break
                    done += size_bytes
                    progress(done, total)
            finally:
                for one in pending:
                    one.cancel()
        if wrong is not None:
            raise ImageDamagedError(f"{self._path}{wrong}")

    def verify(self) -> None:
        """Read all of it, a chunk at a time. Raises ImageDamagedError or OSError."""
        begins = f.starts(self.manifest)
        with memoryview(bytearray(_READ_BYTES)) as buffer:
            for part, begin in zip(self.manifest.parts, begins, strict=False):
                for start in range(0, part.size_bytes, _READ_BYTES):
                    size = min(_READ_BYTES, part.size_bytes - start)
                    with buffer[:size] as piece:
                        wrong = self._read_piece(part, self._data + begin, piece, start)
                    if wrong is not None:
                        raise ImageDamagedError(f"{self._path}{wrong}")

    def _fill(
        self, part: f.Part, begin: int, target: memoryview, start: int
    ) -> tuple[int, str | None]:
        """How many bytes were read, or what is wrong: an error would know who looks at them."""
        with target[start : start + _READ_BYTES] as piece:
            wrong = self._read_piece(part, begin, piece, start)
            return len(piece), wrong

    def _read_piece(self, part: f.Part, begin: int, piece: memoryview, start: int) -> str | None:
        """Reads the bytes of the part from ``start`` on, if they are what was written."""
        if missing := _read_into(self._fd, begin + start, piece):
            return f" ends {missing} bytes too early"
        for at in range(0, len(piece), f.CHUNK_BYTES):
            chunk = (start + at) // f.CHUNK_BYTES
            if digest(piece[at : at + f.CHUNK_BYTES]) != part.digest_of(chunk):
                where = f"what is in {part.tag} from byte {start + at} on"
                return f": {where} is not what was written"
        return None


def _digests(threads: ThreadPoolExecutor, data: memoryview) -> str:
    pieces = (data[at : at + f.CHUNK_BYTES] for at in range(0, len(data), f.CHUNK_BYTES))
    return "".join(f"{one:016x}" for one in threads.map(digest, pieces))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[int]:
    """A new file that takes the place of ``path`` once all of it is on the disk."""
    fd, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        try:
            lock(fd, fcntl.LOCK_EX)  # whoever finds it without a lock may remove it
            yield fd
            os.fsync(fd)
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


def _read(fd: int, offset: int, size: int) -> bytes:
    content = bytearray(size)
    if missing := _read_into(fd, offset, memoryview(content)):
        raise ImageDamagedError(f"a file of images ends {missing} bytes too early")
    return bytes(content)


def _read_into(fd: int, offset: int, target: memoryview) -> int:
    """How many bytes there are not."""
    while target:
        count = os.preadv(fd, [target], offset)
        if count == 0:
            return len(target)
        target, offset = target[count:], offset + count
    return 0
