"""Tensors of a checkpoint's safetensors files, read past the page cache ahead of who takes them."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from gpupool.errors import UsageError
from gpupool.images import format as f
from gpupool.images.direct import DirectFile
from gpupool.images.reading import THREADS

WINDOW_BYTES = 128 << 20
"""So much is read ahead, or one tensor."""
_READ_BYTES = f.CHUNK_BYTES  # by one thread at a time
_KINDS = {said: getattr(torch, name) for name, said in f.DTYPES.items()}


class _Said(msgspec.Struct):
    """Of one tensor, in a file's header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and where it is."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: DirectFile
    offset: int
    """In the file, in bytes."""
    size_bytes: int


class Checkpoint:
    """Safetensors files that are open for reading, and what is in them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises UsageError for what is not understood of a file, ImageReadError or OSError."""
        with ExitStack() as files:
            self.entries: list[Entry] = []
            for path in paths:
                file = files.enter_context(closing(DirectFile(path)))
                self.entries += _entries(file)
            self._files = files.pop_all()

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(entry.size_bytes for entry in self.entries)

    def close(self) -> None:
        """Let go of the files; idempotent."""
        self._files.close()

    def tensors(
        self,
        heard: Callable[[int], None] = lambda _: None,
        window_bytes: int = WINDOW_BYTES,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Each with its name, in the order of the files, in memory of its own, then close them.

        ``heard`` is told how many bytes each has. Raises ImageReadError or UsageError for what
        cannot be read; nobody reads any more then, nor once the iterator is closed.
        """
        with (
            closing(self),
            ThreadPoolExecutor(THREADS, thread_name_prefix="gpupool-checkpoint") as threads,
        ):
            ahead: deque[_Coming] = deque()
            ahead_bytes, coming = 0, iter(self.entries)
            memories = _Memories()
            try:
                entry = next(coming, None)
                while entry is not None or ahead:
                    while entry is not None and (
                        not ahead or ahead_bytes + entry.size_bytes <= window_bytes
                    ):
                        ahead.append(_Coming(entry, memories, threads))
                        ahead_bytes += entry.size_bytes
                        entry = next(coming, None)
                    first = ahead[0]
                    found = first.tensor()
                    ahead.popleft()
                    ahead_bytes -= first.entry.size_bytes
                    heard(first.entry.size_bytes)
                    yield first.entry.name, found
                    del first, found  # whoever took it may let go of it
            finally:
                for one in ahead:
                    one.cancel()


class _Memories:
    """What tensors were read to, and are again once whoever took them let go of them."""

    def __init__(self) -> None:
        """None yet."""
        self._all = [mmap.mmap(-1, 1)]
        self._references = self._references_to(0)  # to one that no tensor is in
        self._all.clear()

    def of(self, size_bytes: int) -> mmap.mmap:
        """Memory for so many bytes, of which nothing else has any."""
        free = [n for n in range(len(self._all)) if self._references_to(n) == self._references]
        for number in free:
            if size_bytes <= len(self._all[number]) <= 2 * size_bytes:
                return self._all[number]
        for number in reversed(free):  # of other sizes than are read now
            del self._all[number]
        # Private: shared memory, which is the default, hardly ever gets huge pages.
        memory = mmap.mmap(-1, max(size_bytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)  # fewer faults as it is read into
        self._all.append(memory)
        return memory

    def _references_to(self, number: int) -> int:
        return sys.getrefcount(self._all[number])


class _Coming:
    """One tensor that is being read."""

    def __init__(self, entry: Entry, memories: _Memories, threads: ThreadPoolExecutor) -> None:
        self.entry = entry
        # Direct reads begin at multiples: what is before the tensor comes along.
        self._before = entry.offset % f.ALIGNMENT_BYTES
        self._memory = memories.of(self._before + entry.size_bytes)
        length = self._before + entry.size_bytes
        self._reads: list[Future[None]] = [
            threads.submit(self._read, at, min(_READ_BYTES, length - at))
            for at in (range(0, length, _READ_BYTES) if entry.size_bytes else ())
        ]

    def tensor(self) -> torch.Tensor:
        for read in self._reads:
            read.result()
        entry = self.entry
        if entry.size_bytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        count = math.prod(entry.shape)
        flat = torch.frombuffer(self._memory, dtype=entry.dtype, count=count, offset=self._before)
        return flat.reshape(entry.shape)

    def cancel(self) -> None:
        for read in self._reads:
            read.cancel()

    def _read(self, at: int, size_bytes: int) -> None:
        entry = self.entry
        begin = entry.offset - self._before
        with memoryview(self._memory) as whole, whole[at : at + size_bytes] as target:
            if entry.file.fill(begin + at, target) < size_bytes:
                raise UsageError(
                    f"{entry.file.path} became shorter as it was read, within {entry.name!r}"
                )


def _entries(file: DirectFile) -> list[Entry]:
    """In the order of the file."""
    file_bytes = file.path.stat().st_size
    length = int.from_bytes(file.read(0, 8), "little")
    if not 0 < length <= min(f.HEADER_BYTES_MAX, file_bytes - 8):
        raise UsageError(f"{file.path} does not begin as a safetensors file does")
    try:
        header = msgspec.json.decode(file.read(0, 8 + length)[8:], type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        said = {name: msgspec.json.decode(raw, type=_Said) for name, raw in header.items()}
    except msgspec.MsgspecError as error:
        raise UsageError(f"the header of {file.path} is not understood: {error}") from None
    found = []
    for name, one in said.items():
        begin, end = one.data_offsets
        dtype = _KINDS.get(one.dtype)
        if dtype is None:
            raise UsageError(f"{file.path}: {name!r} has the type {one.dtype}, not known here")
        size_bytes = math.prod(one.shape) * dtype.itemsize
        fits = begin >= 0 and end == begin + size_bytes and 8 + length + end <= file_bytes
        if not fits or min(one.shape, default=0) < 0:
            raise UsageError(f"{file.path}: {name!r} does not lie where its header says")
        found.append(Entry(name, dtype, tuple(one.shape), file, 8 + length + begin, size_bytes))
    return sorted(found, key=lambda entry: entry.offset)
