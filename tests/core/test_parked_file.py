"""Files that images are parked in: every byte comes back, or an error does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpupool.errors import DamagedMemoryError, ImageWriteError
from gpupool.residency import parked_file
from gpupool.residency.parked_file import ParkedFile, Part, padded

CHUNK = 2 << 20
SIZES = [1, 4095, 4096, 4097, CHUNK, CHUNK + 1, 3 * CHUNK - 4097]


def go_on() -> None:
    """Nobody stops it."""


def content(seed: int, size_bytes: int) -> np.ndarray:
    """From a multiple of 4096 bytes of memory on."""
    memory = np.zeros(size_bytes + 4096, dtype=np.uint8)
    memory = memory[-memory.ctypes.data % 4096 :][:size_bytes]
    memory[:] = np.random.default_rng(seed).integers(0, 256, size_bytes, dtype=np.uint8)
    return memory


class Parked:
    """A file of parts of many sizes, and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.due = [content(seed, size) for seed, size in enumerate(SIZES)]
        self.file = ParkedFile(folder)
        ends = [0]
        for size_bytes in SIZES:
            ends.append(ends[-1] + padded(size_bytes))
        self.offsets = ends[:-1]
        self.digests: list[list[int]] = [[] for _ in SIZES]
        self.file.reserve(ends[-1])

    def parts(self, of: list[np.ndarray]) -> list[Part]:
        memories = [memoryview(each).cast("B") for each in of]
        return list(map(Part, self.offsets, memories, self.digests))

    def write(self) -> None:
        self.file.write(self.parts(self.due), go_on)

    def check(self) -> None:
        back = [content(99, size_bytes) for size_bytes in SIZES]
        self.file.read(self.parts(back), go_on)
        for found, due in zip(back, self.due, strict=True):
            assert np.array_equal(found, due)


@pytest.fixture
def parked(tmp_path: Path) -> Any:
    parked = Parked(tmp_path)
    yield parked
    parked.file.close()
    parked.file.close()
    assert list(tmp_path.iterdir()) == []


def refusing(
    monkeypatch: pytest.MonkeyPatch, call: str, error: int, when: Callable[[int], bool]
) -> list[int]:
    """Some of these calls of the system fail; how many were made."""
    calls: list[int] = []
    real = getattr(os, call)

    def refused(*arguments: Any) -> Any:
        calls.append(1)
        if when(len(calls)):
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    monkeypatch.setattr(os, call, refused)
    return calls


def test_what_was_written_comes_back(parked: Parked) -> None:
    for seed in (0, 50):
        for at, due in enumerate(parked.due):
            due[:] = content(seed + at, len(due))
        parked.write()
        parked.check()


@pytest.mark.parametrize("call", ["pwritev", "preadv"])
def test_a_file_system_without_direct_access_is_as_good(
    parked: Parked, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    if call == "preadv":
        parked.write()
    parked.file._is_direct = True
    calls = refusing(monkeypatch, call, errno.EINVAL, lambda nth: parked.file._is_direct)
    parked.write()
    parked.check()
    assert calls and not parked.file._is_direct


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_file_system_without_unnamed_files_is_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    refusing(monkeypatch, "open", error, lambda nth: nth == 1)
    parked = Parked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    parked.write()
    parked.check()
    parked.file.close()


def test_parts_of_calls_add_up(parked: Parked, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("pwritev", "preadv"):
        real = getattr(os, call)

        def some(fd: int, data: list[memoryview], at: int, real: Any = real) -> int:
            with data[0][:8192] as first:
                return int(real(fd, [first], at))

        monkeypatch.setattr(os, call, some)
    parked.write()
    parked.check()


@pytest.mark.parametrize("nth", [1, 3, 9])
def test_a_full_disk_is_one_sentence(
    parked: Parked, monkeypatch: pytest.MonkeyPatch, nth: int, tmp_path: Path
) -> None:
    refusing(monkeypatch, "pwritev", errno.ENOSPC, lambda made: made >= nth)
    with pytest.raises(ImageWriteError) as caught:
        parked.write()
    assert str(caught.value) == (f"images cannot be parked in {tmp_path}: No space left on device")
    monkeypatch.undo()
    parked.write()
    parked.check()
    refusing(monkeypatch, "posix_fallocate", errno.ENOSPC, lambda made: True)
    with pytest.raises(ImageWriteError, match="No space left"):
        parked.file.reserve(1 << 30)


def test_no_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageWriteError, match="No such file"):
        ParkedFile(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ImageWriteError, match="Not a directory"):
        ParkedFile(tmp_path / "file")


@pytest.mark.parametrize("error", [errno.EIO, None])
def test_what_cannot_be_read_is_damaged(
    parked: Parked, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    parked.write()
    if error is None:
        os.ftruncate(parked.file._fd, 8192)
    else:
        refusing(monkeypatch, "preadv", error, lambda nth: nth == 4)
    with pytest.raises(DamagedMemoryError, match="cannot be read back"):
        parked.check()


@pytest.mark.parametrize("part", range(len(SIZES)))
def test_every_bit_counts(parked: Parked, part: int) -> None:
    parked.write()
    rng = np.random.default_rng(part)
    fd = os.open(f"/proc/self/fd/{parked.file._fd}", os.O_RDWR)
    for at in {0, SIZES[part] - 1, *rng.integers(0, SIZES[part], 5)}:
        where = parked.offsets[part] + int(at)
        (before,) = os.pread(fd, 1, where)
        os.pwrite(fd, bytes([before ^ 1 << int(rng.integers(8))]), where)
        with pytest.raises(DamagedMemoryError, match="not what was written there"):
            parked.check()
        os.pwrite(fd, bytes([before]), where)
    os.close(fd)
    parked.check()


@pytest.mark.parametrize("call", ["write", "check"])
def test_it_ends_where_it_is_told_to(parked: Parked, call: str) -> None:
    class StopError(Exception):
        pass

    parked.write()
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) >= 3:
            raise StopError

    transfer = parked.file.write if call == "write" else parked.file.read
    with pytest.raises(StopError):
        transfer(parked.parts(parked.due), stop)
    assert len(asked) < 3 + parked_file._THREADS
