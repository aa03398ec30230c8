"""Disks, drivers and threads that fail as images of an embedded pool go to files and come back."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_members import (
    HELD_BYTES,
    IMAGE_BYTES,
    PATIENCE_S,
    Member,
    Watched,
    beside,
    closed_at_the_end,
    parked,
    pool_of,
    until,
)

from gpupool import Pool
from gpupool._core import FaultPlan
from gpupool.errors import (
    DamagedMemoryError,
    DriverError,
    HostMemoryError,
    RefusedError,
    UsageError,
)
from gpupool.residency import parked_file
from gpupool.residency.closed import NO_MEMORY

OUT_OF_MEMORY = 2


@pytest.mark.parametrize("verify", ["off", "always"])
@pytest.mark.parametrize("at", [0, 2 << 20, IMAGE_BYTES - 1])
def test_a_bit_that_flips_in_the_file_is_found_before_a_step(
    pool: Pool, verify: str, at: int
) -> None:
    a = Member(pool, "a", verify=verify)
    b, c = Member(pool, "b"), Member(pool, "c")
    assert parked(a, b, c) == ["a"]
    a.flip(at)
    for _ in range(2):
        with pytest.raises(DamagedMemoryError, match=r"model 'a': .* not what was written there"):
            a.check()
        assert a.is_parked and not a.model.gate.is_resident
        assert pool.statistics().host_bytes <= 2 * HELD_BYTES
        b.check()
        c.check()
    a.flip(at)
    a.check()


@pytest.mark.parametrize("at", [0, 2 << 20, IMAGE_BYTES - 1])
def test_a_bit_that_flips_before_an_image_is_parked_is_found_before_a_step(
    pool: Pool, at: int
) -> None:
    """The file has digests of what was parked; the region those of what was saved."""
    a, b = Member(pool, "a"), Member(pool, "b")
    image = np.asarray(a.region.image())
    image[at] ^= 16
    del image
    c = Member(pool, "c")
    assert parked(a, b, c) == ["a"]
    for _ in range(2):
        with pytest.raises(DamagedMemoryError, match=r"model 'a': .* are not what was saved"):
            a.check()
        assert not a.is_parked and not a.model.gate.is_resident
    np.asarray(a.region.image())[at] ^= 16
    a.check()


@pytest.mark.parametrize("left_bytes", range(0, IMAGE_BYTES, 500 << 10))
def test_a_file_that_is_cut_is_found_before_a_step(pool: Pool, left_bytes: int) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    c = Member(pool, "c")
    os.ftruncate(a.file, left_bytes - left_bytes % 4096)
    with pytest.raises(DamagedMemoryError, match=r"model 'a': .*cannot be read back"):
        a.check()
    assert a.is_parked and not a.model.gate.is_resident
    for member in (b, c):
        member.check()
    a.model.close()
    Member(pool, "d").check()


def test_a_full_disk_leaves_a_model_as_it_was_and_another_is_asked(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [1]
    reserve = parked_file.ParkedFile.reserve

    def reserve_or_not(self: Any, size_bytes: int) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise self._unwritable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        reserve(self, size_bytes)

    monkeypatch.setattr(parked_file.ParkedFile, "reserve", reserve_or_not)
    a, b = Member(pool, "a"), Member(pool, "b")
    c = Member(pool, "c")
    assert parked(a, b, c) == ["b"]
    a.check()
    refusals[0] = 100
    said = r"of the host budget are free, and no other model can park .*No space left on device"
    for _ in range(2):
        with pytest.raises(RefusedError, match=said):
            Member(pool, "d")
    with pytest.raises(RefusedError, match=said):
        b.check()
    assert b.is_parked
    assert refusals[0] == 99  # not of the first, which has just failed
    refusals[0] = 0
    c.model.close()
    for each in (a, b):
        each.check()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_disk_that_fills_up_loses_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    written, real = [0], os.pwritev

    def write(*arguments: Any) -> int:
        written[0] += 1
        if written[0] >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, "pwritev", write)
    with pytest.raises(RefusedError, match="No space left on device"):
        Member(pool, "c")
    assert written[0] >= nth
    assert parked(a, b) == []
    monkeypatch.undo()
    a.check()
    b.check()


def test_every_call_of_the_driver_may_fail_as_images_go_and_come(folder: Path) -> None:
    failures, nth, injected = 0, 0, 1
    while injected:
        nth += 1
        plan = FaultPlan()
        with closed_at_the_end(pool_of(folder, plan=plan), folder) as pool:
            members = [Member(pool, name) for name in "abc"]
            for member in members[1:]:
                member.check()
            plan.arm(nth, OUT_OF_MEMORY)
            try:
                members[0].check()
            except (DriverError, HostMemoryError, RefusedError):
                failures += 1
            injected = plan.injected
            plan.disarm()
            assert pool.statistics().host_bytes <= 2 * HELD_BYTES
            for member in members:
                wait = pool._arbiter.host._members  # what failed is not asked again for a while
                for each in wait.values():
                    each.images.why, each.images.not_before_s = "", 0.0
                member.check()
    assert failures >= 5


def test_who_is_interrupted_leaves_the_line(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    real = parked_file.ParkedFile.write

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    rounds = [("new", "write"), ("back", "write"), ("back", "read")]
    for number, (what, stage) in enumerate(rounds):
        monkeypatch.setattr(parked_file.ParkedFile, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            Member(pool, "c") if what == "new" else a.check()
        monkeypatch.undo()
        assert parked_file.ParkedFile.write is real
        assert pool._arbiter.host._line.first is None
        assert pool.statistics().host_bytes <= 2 * HELD_BYTES
        Member(pool, f"d{number}").check()
        for member in (a, b):
            member.check()
        Member(pool, f"e{number}")
        assert a.is_parked


def test_a_model_that_fails_to_leave_stays_and_is_why(folder: Path) -> None:
    def fail() -> None:
        if fails:
            raise OSError("the stream is stuck")

    with closed_at_the_end(pool_of(folder, images=1), folder) as pool:
        a, fails = Member(pool, "a"), False
        b = Member(pool, "b", before_swap_out=fail)
        b.check()
        fails = True
        for _ in range(2):
            with pytest.raises(RefusedError, match=r"can park .*the stream is stuck"):
                a.check()
            assert b.model.gate.is_resident
        b.check()
        fails = False
        b.model.swap_out()
        pool._arbiter.host.images(b.model._session.key).not_before_s = 0.0  # type: ignore[attr-defined]
        a.check()


def test_a_model_that_is_closed_waits_no_more(pool: Pool) -> None:
    a, b, c = (Member(pool, name) for name in "abc")
    assert a.is_parked
    line = pool._arbiter.host._line
    with b.model.pinned(), c.model.pinned():

        def pin() -> None:
            with a.model.pinned():
                raise AssertionError("it is closed")

        with beside(pin) as found:
            until(lambda: line.first is not None)
            a.model.close()
        assert isinstance(found[0], UsageError), found
        assert str(found[0]) == "a closed model cannot be used"
        assert line.first is None
    b.check()


LOOKS: dict[str, Callable[[Member], object]] = {
    "pinned": lambda member: member.model.pinned().__enter__(),
    "region": lambda member: member.model.region("runtime", 4096),
    "resize": lambda member: member.model.resize(member.region, 4096),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_model_that_is_closed_as_it_is_read_back_leaves_nothing_on_the_account(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    a, b, c = (Member(pool, name) for name in "abc")
    assert parked(a, b, c) == ["a"]
    residency, watched = a.model._residency, Watched()
    monkeypatch.setattr(residency.parking, "_reading", watched)
    read, comes = os.preadv, threading.Event()

    def read_slowly(*arguments: Any) -> int:
        comes.set()
        until(lambda: watched.awaited.is_set() or residency.saved is NO_MEMORY)
        return read(*arguments)

    monkeypatch.setattr(os, "preadv", read_slowly)
    with beside(lambda: LOOKS[look](a)) as found:
        assert comes.wait(PATIENCE_S)
        a.model.close()
    # Nobody asks between the last chunks, which are read at once, and the end.
    assert found[0] is None or isinstance(found[0], UsageError), found
    b.model.close()
    c.model.close()
    assert pool.statistics().host_bytes == 0
