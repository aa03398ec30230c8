"""Several threads read a file of images: what is wrong stops them all, and the first is told."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_parts import (
    CHUNK,
    CONTENTS,
    PAGE,
    SIZES,
    begin_of,
    read_back,
    real_preadv,
    targets,
    written,
)

from gpupool.errors import ImageDamagedError, ImageReadError
from gpupool.images import reading
from gpupool.images.file import ImageFile

pytestmark = pytest.mark.usefixtures("small_chunks")


@given(chunks=st.sets(st.integers(0, 43), min_size=1, max_size=6), data=st.data())
@settings(max_examples=60)
def test_the_first_of_all_that_is_wrong_is_told(
    folder: Path, chunks: set[int], data: st.DataObject
) -> None:
    path = folder / "damaged"
    if not path.exists():
        written(path)
    begin = begin_of(path)
    places = []
    with path.open("r+b") as file, ImageFile(path) as image:
        for at in (begin + chunk * CHUNK for chunk in chunks):
            inside = data.draw(st.integers(0, min(CHUNK, begin + SIZES[0] + SIZES[2] - at) - 1))
            places.append(at + inside)
        original = [os.pread(file.fileno(), 1, place) for place in places]
        for place, (byte,) in zip(places, original, strict=True):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
        first = begin + min(chunks) * CHUNK
        with targets() as (views, _), pytest.raises(ImageDamagedError) as raised:
            image.read_into(views)
        part = "part0" if min(chunks) < SIZES[0] // CHUNK else "part2"
        why = f"from byte {first} on, in {part}, it is not what was written"
        assert str(raised.value) == f"{path}: {why}"
        for place, byte in zip(places, original, strict=True):
            os.pwrite(file.fileno(), byte, place)
        with targets() as (views, _):
            image.read_into(views)


class Cleared(deque[Any]):
    """What is to be read; tells when it was taken away."""

    event = threading.Event()

    def clear(self) -> None:
        super().clear()
        self.event.set()


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    monkeypatch.setattr(reading, "deque", Cleared)
    Cleared.event.clear()
    return Cleared.event


@pytest.mark.parametrize("nth", [0, 1, 9, 39])
def test_a_disk_that_fails_stops_all_threads(
    parts_path: Path, monkeypatch: pytest.MonkeyPatch, cleared: threading.Event, nth: int
) -> None:
    bad = begin_of(parts_path) + nth * CHUNK
    others: list[bool] = []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == bad:
            raise OSError(errno.EIO, "Input/output error")
        if offset > bad:
            others.append(cleared.wait(20))
        return real_preadv(fd, buffers, offset)

    with ImageFile(parts_path) as file, targets() as (views, _):
        was_direct = file.is_direct
        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(ImageReadError) as raised:
            file.read_into(views)
        assert file.is_direct == was_direct
    assert str(raised.value) == f"{parts_path} cannot be read at byte {bad}: Input/output error"
    # What the others had begun, and nothing after.
    assert all(others)
    assert len(others) < reading.THREADS


def test_an_interrupt_stops_all_threads(
    parts_path: Path, monkeypatch: pytest.MonkeyPatch, cleared: threading.Event
) -> None:
    begin = begin_of(parts_path)
    others: list[bool] = []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset > begin + CHUNK:
            others.append(cleared.wait(20))
        return real_preadv(fd, buffers, offset)

    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    with ImageFile(parts_path) as file, targets() as (views, _):
        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(KeyboardInterrupt):
            file.read_into(views, progress=interrupted)
    assert all(others)
    assert len(others) <= reading.THREADS


@pytest.mark.parametrize("end", [1, PAGE, CHUNK + 7, 20 * CHUNK + 512, 40 * CHUNK + PAGE])
def test_a_file_that_is_cut_while_it_is_read_is_found(
    parts_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    begin = begin_of(parts_path)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(parts_path, begin + end)
        return real_preadv(fd, buffers, offset)

    with ImageFile(parts_path) as file, targets() as (views, _):
        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(ImageDamagedError) as raised:
            file.read_into(views)
        part = "part0" if end < SIZES[0] else "part2"
        assert str(raised.value) == f"{parts_path} ends at byte {begin + end}, within {part}"


@pytest.mark.parametrize("nth", [1, 2, 20])
def test_an_interrupt_leaves_nobody_reading(parts_path: Path, nth: int) -> None:
    heard: list[int] = []

    def progress(done: int, of: int) -> None:
        heard.append(done)
        assert of == sum(SIZES)
        if len(heard) == nth:
            raise KeyboardInterrupt

    try:
        read_back(parts_path, progress=progress)
    except KeyboardInterrupt:
        # Already, though the error is still about; and all memory could be closed.
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("gpupool-image")]
    assert len(heard) == nth
    assert heard == sorted(heard)
    assert read_back(parts_path) == CONTENTS


def test_an_error_that_nobody_foresaw_is_raised(
    parts_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unmapped(*_: Any) -> Any:
        raise MemoryError

    with ImageFile(parts_path) as file, monkeypatch.context() as patched:
        patched.setattr(reading.mmap, "mmap", unmapped)
        with pytest.raises(MemoryError):
            file.verify()
