from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_bench import Daemon, StartDaemon
from parking_bench import Members


@pytest.fixture
def directory() -> Iterator[Path]:
    """A private directory with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="gpupool-") as name:
        yield Path(name)


@pytest.fixture
def start_daemon(directory: Path) -> Iterator[StartDaemon]:
    """Start daemons; each must be well to the end, unless the test calls ``abandon`` on it."""
    started: list[Daemon] = []

    def start(**arguments: Any) -> Daemon:
        daemon = Daemon(arguments.pop("socket_path", directory / "daemon.sock"), **arguments)
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        try:
            if daemon.process.returncode is None:
                daemon.stop()
        finally:
            daemon.abandon()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    """A daemon of four pages."""
    return start_daemon()


@pytest.fixture
def members(daemon: Daemon) -> Iterator[Members]:
    """Models of this process whose images do not all fit the daemon's host memory."""
    members = Members(daemon)
    yield members
    members.close()
