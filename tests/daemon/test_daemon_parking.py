"""Models whose images together do not fit host memory: those used least recently go to files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon, until
from parking_bench import HELD_BYTES, IMAGE_BYTES, Members

from gpupool.errors import (
    DamagedMemoryError,
    GpupoolError,
    LeaseTimeoutError,
    RefusedError,
    UsageError,
)
from gpupool.residency import parked_file
from gpupool.residency.closed import NO_MEMORY


@pytest.fixture
def folder(directory: Path) -> Path:
    return directory / "parked"


@pytest.fixture
def daemon(start_daemon: StartDaemon, folder: Path) -> Daemon:
    """Device memory for two models, and host memory for the images of two."""
    return start_daemon(
        pages=4,
        options=(
            *("--host-budget-bytes", str(2 * HELD_BYTES), "--turn-ms", "1"),
            *("--parking-folder", str(folder)),
        ),
    )


def test_models_that_do_not_fit_host_memory_take_turns(daemon: Daemon, members: Members) -> None:
    models = [members(name) for name in "abc"]
    for _ in range(3):
        for member in models:
            member.check()
            assert daemon.status().host_bytes <= 2 * HELD_BYTES
            assert len(members.parked()) >= 1
            assert member.name not in members.parked()
    a = daemon.status().models[0]
    assert a.read_backs >= 2
    assert a.read_back_bytes == a.read_backs * IMAGE_BYTES
    assert a.read_back_s > 0
    assert a.parked_file_bytes == HELD_BYTES


def test_the_one_used_least_recently_goes(members: Members) -> None:
    a, b = members("a"), members("b")
    a.check()
    b.check()
    a.use()
    members("c")
    assert members.parked() == ["b"]
    assert b.region.image_bytes == 0
    assert b.model.parked_bytes == IMAGE_BYTES


def test_nothing_in_the_folder_has_a_name(members: Members, folder: Path) -> None:
    for name in "abc":
        members(name).check()
    assert members.parked() == ["a"]
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_images_that_have_not_changed_are_written_once(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = parked_file.ParkedFile.write

    def counted(self: Any, parts: Sequence[parked_file.Part], go_on: Any) -> None:
        written.append(sum(len(part.memory) for part in parts))
        write(self, parts, go_on)

    monkeypatch.setattr(parked_file.ParkedFile, "write", counted)
    models = [members(name) for name in "abc"]
    for _ in range(3):
        for member in models:
            member.check()
    assert sum(written) == 3 * IMAGE_BYTES
    a = models[0]
    with a.model.resident():
        ctypes.memset(a.region.address, 7, 3)
        a.region.mark_written([(0, 3)])
    a.due[:3] = 7
    for member in [*models[1:], *models]:
        member.check()
    assert sum(written) == 4 * IMAGE_BYTES


@pytest.mark.parametrize("verify", ["off", "sample", "always"])
@pytest.mark.parametrize("at", [0, 2 << 20, IMAGE_BYTES - 1])
def test_a_bit_that_flips_in_the_file_is_found_before_a_step(
    daemon: Daemon, members: Members, verify: str, at: int
) -> None:
    a = members("a", verify=verify)
    members.park("a").flip(at)
    for _ in range(2):
        with pytest.raises(DamagedMemoryError, match=r"model 'a': .* not what was written there"):
            a.check()
        assert not a.model.gate.is_resident
        assert a.model.parked_bytes == IMAGE_BYTES
    until(lambda: daemon.status().models[0].damaged == 2)
    assert daemon.status().models[0].state == "out"
    daemon.until_ledger(free=4, host_bytes=0)
    a.flip(at)
    a.check()


def refuse(refusals: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """So many parkings meet a full disk."""
    reserve = parked_file.ParkedFile.reserve

    def reserve_or_not(self: Any, size_bytes: int) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise self._unwritable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        reserve(self, size_bytes)

    monkeypatch.setattr(parked_file.ParkedFile, "reserve", reserve_or_not)


def test_a_full_disk_leaves_a_model_as_it_was_and_another_is_asked(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [1]
    refuse(refusals, monkeypatch)
    a, b = members("a"), members("b")
    c = members("c")
    assert members.parked() == ["b"]
    a.check()
    refusals[0] = 100
    said = r"of the host budget are free, and no other model can park .*No space left on device"
    with pytest.raises(RefusedError, match=said):
        members("d")
    assert refusals[0] == 99  # not of the first, which has just failed
    with pytest.raises(RefusedError, match=said):
        b.check()
    refusals[0] = 0
    c.model.close()
    for each in (a, b):
        each.check()


def test_what_is_looked_at_is_not_parked(members: Members) -> None:
    a, b = members("a"), members("b")
    with memoryview(a.region.image()) as view:  # type: ignore[arg-type]
        c = members("c")
        assert members.parked() == ["b"]
        assert bytes(view[:9]) == a.due[:9].tobytes()
    with pytest.raises(UsageError, match=r"parked in a file: look at it within Model\.pinned"):
        b.region.image()
    with b.model.pinned():
        assert np.array_equal(np.asarray(b.region.image()), b.due)
        assert members.parked() == ["c"]
        with a.model.pinned(), pytest.raises(LeaseTimeoutError), c.model.pinned(0.05):
            raise AssertionError("two of three are pinned")
    c.check()


@pytest.mark.parametrize("timeout_s", [-5, 0, float("inf")])
def test_images_that_are_there_are_pinned_at_once(members: Members, timeout_s: float) -> None:
    a, b = members("a"), members("b")
    with a.model.pinned(timeout_s):
        assert np.array_equal(np.asarray(a.region.image()), a.due)
    members.park("a")
    b.check()
    if timeout_s > 0:
        with a.model.pinned(timeout_s):
            assert a.model.parked_bytes == 0
    else:
        b.model.swap_out()
        with pytest.raises(UsageError, match="must be a number of seconds"), a.model.pinned("soon"):  # type: ignore[arg-type]
            raise AssertionError("that is no time")


def test_a_model_that_is_closed_as_it_is_read_back_leaves_nothing_on_the_account(
    daemon: Daemon, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = members("a")
    members.park("a")
    residency, read, comes = a.model._residency, os.preadv, threading.Event()

    def read_slowly(*arguments: Any) -> int:
        comes.set()
        until(lambda: residency.parking._ended or residency.saved is NO_MEMORY)
        return read(*arguments)

    def look() -> None:
        with contextlib.suppress(UsageError), a.model.pinned():
            pass

    monkeypatch.setattr(os, "preadv", read_slowly)
    looks = threading.Thread(target=look)
    looks.start()
    assert comes.wait(60.0)
    a.model.close()
    looks.join()
    daemon.until_ledger(free=4, host_bytes=0)


def test_who_waits_for_the_images_of_a_model_that_is_closed_hears_that(
    members: Members, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = members("a"), members("b")
    c = members("c")
    assert members.parked() == ["a"]
    asks, found = threading.Event(), []
    session = a.model._session
    host_memories = session.host_memories

    def ask(*arguments: Any, **named: Any) -> Any:
        asks.set()
        return host_memories(*arguments, **named)

    def look() -> None:
        try:
            with a.model.pinned():
                found.append(None)
        except GpupoolError as error:
            found.append(error)

    monkeypatch.setattr(session, "host_memories", ask)
    with b.model.pinned(), c.model.pinned():  # neither can go
        looks = threading.Thread(target=look)
        looks.start()
        assert asks.wait(60.0)
        a.model.close()
        looks.join()
    (error,) = found
    assert isinstance(error, UsageError) and str(error) == "a closed model cannot be used"


def test_the_limit_on_files_holds_for_a_model_that_grew(
    start_daemon: StartDaemon, folder: Path
) -> None:
    options = ("--host-budget-bytes", str(2 * HELD_BYTES + 8192), "--turn-ms", "1")
    limit = ("--parking-folder", str(folder), "--parking-limit-bytes", str(PAGE_BYTES))
    daemon = start_daemon(pages=4, options=(*options, *limit))
    members = Members(daemon)
    a = members("a")
    a.model.remove_region(a.region)
    region = a.model.region("weights", PAGE_BYTES, capacity_bytes=3 * PAGE_BYTES)
    region.adopt_image()
    a.model.declare()
    a.model.resize(region, 3 * PAGE_BYTES)
    region.adopt_image()
    with pytest.raises(RefusedError, match="no other model can park"):
        members("b")
    assert daemon.status().models[0].parked_file_bytes == 0
    with a.model.resident():
        pass
    members.close()
