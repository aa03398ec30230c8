"""Models that wait for host memory, and those that change or leave while they are parked."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon, until
from parking_bench import HELD_BYTES, IMAGE_BYTES, Member, Members

from gpupool.daemon import queries
from gpupool.errors import (
    LeaseTimeoutError,
    RefusedError,
    SwapCancelledError,
    UsageError,
)
from gpupool.residency.parked_file import ParkedFile, Part


@pytest.fixture
def daemon(start_daemon: StartDaemon, directory: Path) -> Daemon:
    """Device memory for two models, host memory for the images of two, and turns without end."""
    return start_daemon(
        pages=4,
        options=(
            *("--host-budget-bytes", str(2 * HELD_BYTES + 8192), "--turn-ms", "1000000"),
            *("--parking-folder", str(directory / "parked")),
        ),
    )


class Running(threading.Thread):
    """Does something and keeps what came of it."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._do = do
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._do()
        except BaseException as error:
            self.error = error

    def done(self) -> BaseException | None:
        self.join(60.0)
        assert not self.is_alive()
        return self.error


def waits(member: Member) -> bool:
    """Whether it asks the daemon for something."""
    return member.model._session._asking.locked()  # type: ignore[attr-defined]


def busy(*members: Member) -> None:
    for member in members:
        member.model.gate.set_idle(False)
        member.check()


def test_who_waits_for_host_memory_holds_no_pages_and_has_it_in_order(members: Members) -> None:
    a, b = members("a"), members("b")
    c, d = members("c"), members("d")
    assert sorted(members.parked()) == ["a", "b"]
    busy(c, d)
    order: list[str] = []

    def come(member: Member) -> None:
        busy(member)
        order.append(member.name)

    threads = []
    for member in (a, b):
        threads.append(Running(lambda member=member: come(member)))
        until(lambda member=member: waits(member))
    states = {m.name: (m.state, m.held_bytes) for m in members.daemon.status().models}
    assert states["a"] == states["b"] == ("out", 0)
    d.model.gate.set_idle(True)  # it leaves, and parks, for the first in line
    assert threads[0].done() is None
    assert order == ["a"]
    assert members.parked() == ["b", "d"]
    c.model.gate.set_idle(True)
    assert threads[1].done() is None
    assert members.parked() == ["c", "d"]
    for member in (a, b):
        member.model.gate.set_idle(True)
    c.check()


def test_a_model_that_is_revoked_to_park_does_so_before_it_comes_back(members: Members) -> None:
    a, b = members("a"), members("b")
    c = members("c")
    assert members.parked() == ["a"]
    busy(b, c)
    at_work = threading.Event()

    def work() -> None:
        while not at_work.is_set():
            c.check()

    worker = Running(work)
    c.model.gate.set_idle(True)  # says so, and has one step after another
    a.check()
    assert a.region.image_bytes > 0
    at_work.set()
    b.model.gate.set_idle(True)
    assert worker.done() is None


def test_who_does_not_get_host_memory_in_time_is_told(members: Members) -> None:
    a, b, c = members("a", lease_timeout_s=0.1), members("b"), members("c")
    assert members.parked() == ["a"]
    busy(b, c)
    with pytest.raises(LeaseTimeoutError, match=r"no host memory within 0\.1 s"):
        a.check()
    with pytest.raises(LeaseTimeoutError, match="no host memory"), a.model.resident(0.0):
        raise AssertionError("it has no images")
    b.model.gate.set_idle(True)
    with a.model.resident(60.0):
        pass
    a.check()


def test_what_is_fetched_ahead_waits_for_idle_models(members: Members) -> None:
    a, b, c = members("a"), members("b"), members("c")
    assert members.parked() == ["a"]
    busy(b, c)
    queries.prefetch(members.daemon.socket_path, "a")
    until(lambda: waits(a))
    hurried = Running(a.check)
    b.model.gate.set_idle(True)
    assert hurried.done() is None
    assert members.parked() == ["b"]
    b.check()  # for which "a" parks, as it is idle
    assert members.parked() == ["a"]
    c.model.gate.set_idle(True)
    queries.prefetch(members.daemon.socket_path, "a")
    until(lambda: a.model.gate.is_resident)
    assert members.parked() == ["b"]


CHANGES: dict[str, Callable[[Member], object]] = {
    "swap_out": lambda member: member.model.swap_out(),
    "region": lambda member: member.model.region("workspace", 4096),
    "close": lambda member: member.model.close(),
    "remove": lambda member: member.model.remove_region(member.region),
}


@pytest.mark.parametrize("change", CHANGES)
def test_who_changes_a_model_ends_its_wait_ahead(members: Members, change: str) -> None:
    a, b, c = members("a"), members("b"), members("c")
    busy(b, c)
    ahead = Running(a.model.prefetch)
    until(lambda: waits(a))
    CHANGES[change](a)
    assert isinstance(ahead.done(), SwapCancelledError)
    for member in (b, c):
        member.model.gate.set_idle(True)
    if change in ("swap_out", "region"):
        a.check()


def test_a_parked_model_can_be_changed_and_closed(daemon: Daemon, members: Members) -> None:
    a, b = members("a"), members("b")
    small = a.model.region("runtime", 5000, capacity_bytes=2 * PAGE_BYTES)
    members.park("a")
    assert a.model.parked_bytes == IMAGE_BYTES  # the other has never been saved
    a.model.resize(small, 4096)
    assert a.model.parked_bytes == 0  # it comes back for that
    members.park("a")
    extra = a.model.region("weights", 4096)
    np.asarray(extra.image())[:] = 9
    extra.adopt_image()
    with a.model.resident():
        assert ctypes.string_at(extra.address, 4096) == b"\x09" * 4096
    a.check()
    a.model.swap_out()
    b.check()
    members.park("a")
    assert a.model.parked_bytes == IMAGE_BYTES + 4096 + 4096
    a.model.remove_region(extra)
    a.model.remove_region(a.region)
    assert a.model.parked_bytes == 4096
    with a.model.resident():
        assert ctypes.string_at(small.address, 4096) == bytes(4096)
    b.check()


def test_a_parked_model_can_be_closed(daemon: Daemon, members: Members) -> None:
    a, b = members("a"), members("b")
    members.park("a")
    files = open_files()
    a.model.close()
    assert open_files() == files - 1
    assert a.model.parked_bytes == 0
    until(lambda: [m.name for m in daemon.status().models] == ["b"])
    b.check()


def open_files() -> int:
    """Of those that have no name any more."""
    found = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    links = [str(path.readlink()) for path in found]
    return sum("/parked/" in link and link.endswith("(deleted)") for link in links)


def test_a_request_that_can_never_be_met_is_refused_at_once(members: Members) -> None:
    a, b = members("a"), members("b")
    for member in (a, b):
        with pytest.raises(RefusedError, match=r"budget are free: raise the host budget"):
            member.model.region("runtime", 3 * HELD_BYTES)
        with pytest.raises(RefusedError, match=r"budget are free, and no other .* raise the host"):
            member.model.region("runtime", HELD_BYTES + 12288)
    assert members.parked() == []


def test_who_must_not_wait_finds_room_the_next_time(members: Members) -> None:
    a, b = members("a"), members("b")
    busy(b)
    for attempt in range(2):
        if attempt == 0:
            with pytest.raises(RefusedError, match="12288 bytes of host memory"):
                b.model.host_memory(12288)
            until(lambda: members.parked() == ["a"])
        else:
            b.model.host_memory(12288)
    b.model.return_host_memory(12288)
    b.model.gate.set_idle(True)
    a.check()


def test_a_model_that_closes_ends_the_wait_of_who_looks_at_its_images(members: Members) -> None:
    a, b, c = members("a"), members("b"), members("c")
    busy(b, c)

    def look() -> None:
        with a.model.pinned():
            raise AssertionError("there is no room")

    looks = Running(look)
    until(lambda: waits(a))
    a.model.close()
    assert isinstance(looks.done(), UsageError)
    for member in (b, c):
        member.model.gate.set_idle(True)


def test_an_image_that_changes_as_it_is_written_is_not_parked(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = members("a"), members("b")
    write = ParkedFile.write

    def write_and_adopt(self: Any, parts: Sequence[Part], go_on: Any) -> None:
        write(self, parts, go_on)
        if a.due[0] != 77:
            a.due[0] = 77
            np.asarray(a.region.image())[0] = 77
            a.region.adopt_image()

    monkeypatch.setattr(ParkedFile, "write", write_and_adopt)
    members("c")
    assert members.parked() == ["b"]
    for member in (b, a):
        member.check()
