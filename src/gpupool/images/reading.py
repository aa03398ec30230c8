"""All parts of a file of images, by several threads, each piece against its digest."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from gpupool._core import digest
from gpupool.errors import ImageDamagedError
from gpupool.images import format as f
from gpupool.images.direct import DirectFile

THREADS = 8
"""Which also keep as many reads before the disk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one digest is of: one read, and looked at by who read it, while it is in the cache."""

    part: int
    """By its number."""
    start: int
    """In the part, in bytes."""
    offset: int
    """In the file, in bytes."""
    size_bytes: int


def read_parts(
    file: DirectFile,
    manifest: f.Manifest,
    data: int,
    targets: Sequence[memoryview] | None,
    heard: Callable[[int], None],
) -> None:
    """Read every part into its target, or nowhere, just to look at it.

    The parts begin at byte ``data`` of the file. ``heard`` is told, by the caller's thread, how
    many bytes each piece had. After an error, also one of ``heard`` or an interrupt, no thread
    begins another piece, none reads any more on return, and what is in the targets counts for
    nothing. Raises ImageDamagedError or ImageReadError for the first piece, in the order of the
    file, that is not as it was written or cannot be read.
    """
    pieces = deque(_pieces(manifest, data))
    # They begin in the order of the file, and what was begun is read to its end. So the first that
    # is wrong is found also where a later one is found before it.
    wrong: list[tuple[int, BaseException]] = []
    told: SimpleQueue[int | None] = SimpleQueue()

    def work() -> None:
        at = 0
        try:
            with _memory(targets) as memory:
                while (piece := _next(pieces)) is not None:
                    at = piece.offset
                    _read(file, manifest, piece, memory)
                    told.put(piece.size_bytes)
        except BaseException as error:
            wrong.append((at, error))
            pieces.clear()
        finally:
            told.put(None)

    working = min(THREADS, len(pieces))
    with ThreadPoolExecutor(max(working, 1), thread_name_prefix="gpupool-image") as threads:
        try:
            for _ in range(working):
                threads.submit(work)
            while working:
                size_bytes = told.get()
                if size_bytes is None:
                    working -= 1
                else:
                    heard(size_bytes)
        finally:
            pieces.clear()
    if wrong:
        wrong.sort(key=lambda found: found[0])
        del wrong[1:]
        raise wrong.pop()[1]  # which nothing here refers to


def _pieces(manifest: f.Manifest, data: int) -> Iterator[Piece]:
    for number, (part, begin) in enumerate(zip(manifest.parts, f.starts(manifest), strict=False)):
        for start in range(0, part.size_bytes, f.CHUNK_BYTES):
            size_bytes = min(f.CHUNK_BYTES, part.size_bytes - start)
            yield Piece(number, start, data + begin + start, size_bytes)


def _next(pieces: deque[Piece]) -> Piece | None:
    try:
        return pieces.popleft()
    except IndexError:
        return None


@contextmanager
def _memory(targets: Sequence[memoryview] | None) -> Iterator[Callable[[Piece], memoryview]]:
    """Where the pieces that one thread reads go."""
    if targets is not None:
        yield lambda piece: targets[piece.part][piece.start : piece.start + piece.size_bytes]
        return
    with mmap.mmap(-1, f.CHUNK_BYTES) as memory, memoryview(memory) as whole:
        yield lambda piece: whole[: piece.size_bytes]


def _read(
    file: DirectFile,
    manifest: f.Manifest,
    piece: Piece,
    memory: Callable[[Piece], memoryview],
) -> None:
    part = manifest.parts[piece.part]
    at, tag = piece.offset, part.tag
    # No error may know a view: the memory cannot go while somebody looks at it.
    with memory(piece) as target:
        count = file.fill(at, target)
        if count < piece.size_bytes:
            raise ImageDamagedError(f"{file.path} ends at byte {at + count}, within {tag}")
        if digest(target) != part.digest_of(piece.start // f.CHUNK_BYTES):
            raise ImageDamagedError(
                f"{file.path}: from byte {at} on, in {tag}, it is not what was written"
            )
