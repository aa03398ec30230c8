"""The socket: who may reach it, and what is in its place when a daemon starts or ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_bench import Daemon, StartDaemon, until

from gpupool.daemon.listening import Listener
from gpupool.errors import UsageError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_directory_and_socket_are_private(directory: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(socket_path=directory / "run" / "pool" / "daemon.sock")
    assert mode(daemon.socket_path.parent) == 0o700
    assert mode(daemon.socket_path) == 0o600


def test_a_directory_others_can_enter_is_refused(directory: Path) -> None:
    directory.chmod(0o755)
    with pytest.raises(UsageError, match="mode 0700"):
        Listener(directory / "daemon.sock")
    assert list(directory.iterdir()) == []


def test_a_socket_left_behind_is_replaced(directory: Path, start_daemon: StartDaemon) -> None:
    first = start_daemon()
    first.process.kill()
    first.process.wait()
    assert first.socket_path.exists()
    second = start_daemon()
    assert second.status().pages_free == 4


def test_a_second_daemon_is_refused(daemon: Daemon, start_daemon: StartDaemon) -> None:
    with pytest.raises(AssertionError, match=r"Error: a daemon is listening on .*: stop it or"):
        start_daemon()
    assert daemon.status().pages_free == 4


def test_a_daemon_too_busy_to_accept_is_not_replaced(directory: Path) -> None:
    path = directory / "daemon.sock"
    listener = Listener(path)
    waiting = []
    try:
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            waiting.append(client)
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(UsageError, match="a daemon is listening"):
            Listener(path)
    finally:
        for client in waiting:
            client.close()
        listener.close()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link", "stream socket"])
def test_what_is_no_socket_of_a_daemon_is_left_alone(directory: Path, kind: str) -> None:
    path = directory / "daemon.sock"
    other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(directory / "nowhere")
    else:
        other.bind(str(path))
        other.listen()
    before = path.lstat()
    with pytest.raises(UsageError, match="exists and is no socket"):
        Listener(path)
    other.close()
    assert path.lstat().st_ino == before.st_ino
    if kind == "file":
        assert path.read_text() == "precious"


def test_a_path_too_long_is_refused(directory: Path) -> None:
    with pytest.raises(UsageError, match="use a shorter path"):
        Listener(directory / ("long" * 40))
    assert list(directory.iterdir()) == []


def test_a_daemon_does_not_remove_the_socket_of_another(directory: Path) -> None:
    path = directory / "daemon.sock"
    first = Listener(path)
    path.unlink()
    second = Listener(path)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(start_daemon: StartDaemon, number: int) -> None:
    daemon = start_daemon()
    model = daemon.model("a", weights=100)
    model.do("enter")
    daemon.process.send_signal(number)
    until(lambda: daemon.process.poll() is not None)
    assert daemon.process.returncode == 0
    assert not daemon.socket_path.exists()


_AS_ANOTHER_USER = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect("daemon.sock")
sys.stdout.buffer.write(connection.recv(1000))
sys.exit(connection.recv(1) != b"")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_turned_away(daemon: Daemon) -> None:
    command = [sys.executable, "-I", "-c", _AS_ANOTHER_USER, str(daemon.socket_path.parent)]
    outside = subprocess.run(command, capture_output=True, check=False)
    assert b"PermissionError" in outside.stderr
    # Even with both doors open:
    daemon.socket_path.parent.chmod(0o755)
    daemon.socket_path.chmod(0o666)
    inside = subprocess.run(command, capture_output=True, check=True)
    assert b"this daemon is not for user 65534" in inside.stdout
    assert daemon.status().models == []
