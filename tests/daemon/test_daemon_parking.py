"""Models whose images together do not fit host memory: those used least recently go to files."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon

from gpupool.daemon.client import DaemonSession
from gpupool.model import Model
from gpupool.residency import parked_file

IMAGE_BYTES = 2 * PAGE_BYTES - 5000
HELD_BYTES = 2 * PAGE_BYTES - 4096  # of host memory


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


class Member:
    """A model of this process, whose weights are its own."""

    def __init__(self, daemon: Daemon, name: str, verify: str = "always") -> None:
        session = DaemonSession(daemon.socket_path, name)
        self.model = Model(name, session, lease_timeout_s=60.0, verify=verify)
        self.name = name
        self.region = self.model.region("weights", IMAGE_BYTES)
        rng = np.random.default_rng(ord(name))
        self.due = rng.integers(0, 256, IMAGE_BYTES, dtype=np.uint8)
        np.asarray(self.region.image())[:] = self.due
        self.region.adopt_image()
        self.model.declare()

    def check(self) -> None:
        """Come in, have what is due, and stay."""
        with self.model.resident():
            seen = ctypes.string_at(self.region.address, IMAGE_BYTES)
            assert seen == self.due.tobytes(), self.name


@pytest.fixture
def members(daemon: Daemon) -> Iterator[Callable[..., Member]]:
    made: list[Member] = []

    def member(name: str, verify: str = "always") -> Member:
        made.append(Member(daemon, name, verify))
        return made[-1]

    yield member
    for each in made:
        each.model.close()


Members = Callable[..., Member]


def parked(daemon: Daemon) -> list[str]:
    return [model.name for model in daemon.status().models if model.parked_bytes]


def test_models_that_do_not_fit_host_memory_take_turns(daemon: Daemon, members: Members) -> None:
    models = [members(name) for name in "abc"]
    for _ in range(3):
        for member in models:
            member.check()
            status = daemon.status()
            assert status.host_bytes <= 2 * HELD_BYTES
            assert len(parked(daemon)) >= 1
            assert member.name not in parked(daemon)
    a = daemon.status().models[0]
    assert a.read_backs >= 2
    assert a.read_back_bytes == a.read_backs * IMAGE_BYTES
    assert a.read_back_s > 0
    assert a.parked_file_bytes == HELD_BYTES


def test_the_one_used_least_recently_goes(daemon: Daemon, members: Members) -> None:
    a, b = members("a"), members("b")
    a.check()
    b.check()
    for idle in (False, True):  # a request comes and goes
        a.model.gate.set_idle(idle)
    members("c")
    assert parked(daemon) == ["b"]
    assert b.region.image_bytes == 0
    assert b.model.parked_bytes == IMAGE_BYTES


def test_nothing_in_the_folder_has_a_name(daemon: Daemon, members: Members, folder: Path) -> None:
    for name in "abc":
        members(name).check()
    assert parked(daemon) == ["a"]
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_images_that_have_not_changed_are_written_once(
    daemon: Daemon, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = parked_file.ParkedFile.write

    def counted(self: parked_file.ParkedFile, parts: list[parked_file.Part], go_on: object) -> None:
        written.append(sum(len(part.memory) for part in parts))
        write(self, parts, go_on)  # type: ignore[arg-type]

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
