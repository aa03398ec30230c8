"""What the bytes of an image digest to as it is written, and whether that is what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gpupool._core import digest
from gpupool.images import format as f

Known = Sequence[tuple[int, int, int]]
"""Pieces of an image, each from byte to byte, and what it should digest to."""


def made(threads: ThreadPoolExecutor, data: memoryview) -> list[int]:
    """Of every chunk, in order."""
    pieces = (data[at : at + f.CHUNK_BYTES] for at in range(0, len(data), f.CHUNK_BYTES))
    return list(threads.map(digest, pieces))


def first_wrong(data: memoryview, chunks: Sequence[int], known: Known) -> tuple[int, int] | None:
    """The first piece that is not what it should be, if one is; ``chunks`` are what was ``made``.

    Those are held against what is known. Only what is cut otherwise is digested once more, and not
    before: what changes meanwhile is in the chunks, and found by who reads the file, or here.
    """
    for begin, end, due in known:
        chunk, within = divmod(begin, f.CHUNK_BYTES)
        if within == 0 and end == min(begin + f.CHUNK_BYTES, len(data)):
            found = chunks[chunk]
        else:
            with data[begin:end] as piece:
                found = digest(piece)
        if found != due:
            return begin, end
    return None
