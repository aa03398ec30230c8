"""Reads past the page cache: what comes is what is there, also where the system does it oddly."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_parts import CONTENTS, PAGE, is_direct, read_back, real_preadv
from page_cache import cached_pages, can_do_without

from gpupool.errors import ImageReadError, UsageError
from gpupool.images.direct import DirectFile
from gpupool.images.file import ImageFile


def in_parts(fd: int, target: memoryview, offset: int, limit: int) -> int:
    """As the system may do it: not all at once, of a direct read whole blocks, and no others."""
    if is_direct(fd):
        if offset % PAGE:
            raise OSError(errno.EINVAL, "Invalid argument")
        limit = max(limit - limit % PAGE, PAGE)
    with target[: max(limit, 1)] as part:
        return real_preadv(fd, [part], offset)


@given(
    size=st.integers(0, 5 * PAGE),
    page=st.integers(0, 6),
    wanted=st.integers(0, 5 * PAGE),
    limits=st.lists(st.integers(1, 3 * PAGE), max_size=8),
    refused_at=st.none() | st.integers(0, 3),
)
@settings(max_examples=200)
def test_what_is_read_is_what_is_there_however_it_comes(
    folder: Path, size: int, page: int, wanted: int, limits: list[int], refused_at: int | None
) -> None:
    path = folder / "any"
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    calls = 0

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        if is_direct(fd) and refused_at is not None and calls > refused_at:
            raise OSError(errno.EINVAL, "Invalid argument")
        limit = limits[calls - 1] if calls <= len(limits) else len(buffers[0])
        return in_parts(fd, buffers[0], offset, limit)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "preadv", preadv)
        file = DirectFile(path)
        was_direct = file.is_direct
        due = content[page * PAGE : page * PAGE + wanted]
        with mmap.mmap(-1, 6 * PAGE) as memory:
            with memoryview(memory) as whole, whole[:wanted] as target:
                assert file.fill(page * PAGE, target) == len(due)
            assert memory[: len(due)] == due
            assert memory[wanted:] == bytes(6 * PAGE - wanted)
        calls = 0
        assert file.read(page * PAGE, wanted) == due
        assert file.is_direct == was_direct or refused_at is not None
        file.close()


def test_a_file_is_read_and_written_without_the_page_cache(parts_path: Path) -> None:
    if not can_do_without(parts_path.parent):
        pytest.skip("this file system keeps its files in the page cache")
    assert cached_pages(parts_path) == 0  # after the write
    assert read_back(parts_path) == CONTENTS
    with ImageFile(parts_path) as file:
        file.verify()
        if not file.is_direct:
            pytest.skip("this file system has no direct reads")
    assert cached_pages(parts_path) == 0
    parts_path.read_bytes()
    assert cached_pages(parts_path) == -(-parts_path.stat().st_size // mmap.PAGESIZE)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
@pytest.mark.parametrize("call", ["open", "preadv"])
def test_a_file_system_without_direct_reads_is_told_of_and_read(
    parts_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    code: int,
) -> None:
    real_open = os.open
    refused = OSError(code, os.strerror(code))

    def open_(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & os.O_DIRECT:
            raise refused
        return real_open(path, flags, *more, **others)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if is_direct(fd):
            raise refused
        return real_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, call, {"open": open_, "preadv": preadv}[call])
    with caplog.at_level(logging.DEBUG, "gpupool"), ImageFile(parts_path) as file:
        assert not file.is_direct
    why = os.strerror(code)
    assert caplog.messages == [f"{parts_path} is read through the page cache: {why}"]
    assert read_back(parts_path) == CONTENTS


def test_no_other_error_is_taken_for_a_file_system_without_direct_reads(
    parts_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        with pytest.raises(OSError, match="Too many open files"):
            ImageFile(parts_path)

    def invalid(*_: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "preadv", invalid)  # direct or not
    with pytest.raises(ImageReadError) as raised:
        ImageFile(parts_path)
    assert str(raised.value) == f"{parts_path} cannot be read at byte 0: Invalid argument"


def test_memory_that_direct_reads_cannot_go_to_is_refused(parts_path: Path) -> None:
    with mmap.mmap(-1, 2 * PAGE) as memory, memoryview(memory) as whole, whole[1:] as target:
        file = DirectFile(parts_path)
        with pytest.raises(UsageError, match="multiples of 4096 bytes"):
            file.fill(0, target)
        with pytest.raises(UsageError, match="multiples of 4096 bytes"):
            file.fill(512, whole)
        file.close()
