"""A file of images without a module: parts of chosen lengths, and memory to read them into."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gpupool.images import format as image_format
from gpupool.images.file import ImageFile, write_image

PAGE = image_format.ALIGNMENT_BYTES
CHUNK = 2 * PAGE  # with the fixture `small_chunks`
SIZES = (40 * CHUNK, 0, 3 * CHUNK + 5000, 17)
"""Of the parts: whole chunks, none, and such as end within a page."""
CONTENTS = [random.Random(size).randbytes(size) for size in SIZES]
real_preadv: Callable[[int, list[memoryview], int], int] = os.preadv


def written(path: Path) -> Path:
    views = [memoryview(content) for content in CONTENTS]
    write_image(path, {}, [(f"part{i}", view) for i, view in enumerate(views)], [])
    return path


@contextmanager
def targets() -> Iterator[tuple[list[memoryview], list[mmap.mmap]]]:
    """Memory for each part and a page more; it ends with an error if anybody looks at it still."""
    with ExitStack() as stack:
        memories = [stack.enter_context(mmap.mmap(-1, size + PAGE)) for size in SIZES]
        views = [stack.enter_context(memoryview(memory)) for memory in memories]
        parts = [stack.enter_context(v[:size]) for v, size in zip(views, SIZES, strict=True)]
        yield parts, memories


def read_back(path: Path, **more: Any) -> list[bytes]:
    with targets() as (views, memories), ImageFile(path) as file:
        file.read_into(views, **more)
        for size, memory in zip(SIZES, memories, strict=True):
            assert memory[size:] == bytes(PAGE)  # nothing behind a part
        return [bytes(view) for view in views]


def begin_of(path: Path) -> int:
    """Where the first part is in the file."""
    with ImageFile(path) as file:
        return path.stat().st_size - image_format.starts(file.manifest)[-1]


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
