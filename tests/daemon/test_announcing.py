"""News of requests on their way to the daemon."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from daemon_bench import StartDaemon, until
from hypothesis import given
from hypothesis import strategies as st

from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.daemon.announcing import Announcer
from gpupool.daemon.client import DaemonSession
from gpupool.daemon.queries import query_why


@pytest.fixture
def listener(directory: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found.bind(str(directory / "a.sock"))
    found.listen()
    return found


def heard(connection: socket.socket) -> list[p.ClientMessage]:
    """All that was said until the other side closed."""
    found = []
    while packet := connection.recv(1 << 16):
        found.append(wire.decode_client(packet))
    return found


def test_each_request_is_told_of_once_and_over_once(
    directory: Path, listener: socket.socket
) -> None:
    announcer = Announcer(directory / "a.sock")
    announcer.announce("m", "one", 5)
    announcer.announce("m", "one", 5)
    announcer.announce("n", "two", 2**60)
    announcer.over("three")
    announcer.over("one")
    announcer.over("one")
    announcer.close()
    announcer.close()
    connection, _ = listener.accept()
    assert heard(connection) == [
        p.Announce("m", "one", 5),
        p.Announce("n", "two", p.COUNT_MAX),
        p.Over("one"),
    ]
    connection.close()
    listener.close()


def test_nobody_waits_for_a_daemon_that_does_not_read(
    directory: Path, listener: socket.socket
) -> None:
    """What is not told is not; what must be known to be over ends with the connection."""
    announcer = Announcer(directory / "a.sock")
    for number in range(100_000):
        announcer.announce("m", f"request-{number}", 5)
        if f"request-{number}" not in announcer.told:
            break
    else:
        pytest.fail("a socket has room for everything")
    connection, _ = listener.accept()
    announcer.over("request-0")
    told = heard(connection)
    assert len(told) == number and announcer.told == frozenset()
    connection.close()
    listener.close()


def test_it_connects_again_but_not_all_the_time(directory: Path) -> None:
    now_s = 0.0
    path = directory / "a.sock"
    announcer = Announcer(path, clock=lambda: now_s)
    announcer.announce("m", "one", 5)
    assert announcer.told == frozenset()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    announcer.announce("m", "two", 5)
    assert announcer.told == frozenset()
    now_s = 10.0
    announcer.announce("m", "three", 5)
    assert announcer.told == {"three"}
    connection, _ = listener.accept()
    connection.close()
    announcer.announce("m", "four", 5)
    assert announcer.told == frozenset(), "all of it is over with the connection"
    now_s = 20.0
    announcer.announce("m", "five", 5)
    assert announcer.told == {"five"}
    announcer.close()
    listener.close()


def test_any_name_can_be_told_or_is_not(directory: Path, listener: socket.socket) -> None:
    announcer = Announcer(directory / "a.sock", clock=lambda: 0.0)
    announcer.announce("m", "first", 5)
    connection, _ = listener.accept()
    assert wire.decode_client(connection.recv(1 << 16)) == p.Announce("m", "first", 5)

    @given(st.text(max_size=300))
    def told(request_id: str) -> None:
        announcer.announce("m", request_id, 5)
        if not request_id or request_id == "first":
            return
        assert wire.decode_client(connection.recv(1 << 16)) == p.Announce("m", request_id[:128], 5)
        announcer.over(request_id)
        assert wire.decode_client(connection.recv(1 << 16)) == p.Over(request_id[:128])

    told()
    announcer.announce("m", "\ud800", 5)  # which no message can have
    assert announcer.told == frozenset()
    announcer.close()
    connection.close()
    listener.close()


@pytest.mark.parametrize("policy", ["turns", "deadlines"])
def test_a_daemon_hears_of_requests_for_models_that_it_does_not_know(
    start_daemon: StartDaemon, policy: str
) -> None:
    daemon = start_daemon(options=("--policy", policy))
    announcer = Announcer(daemon.socket_path)
    announcer.announce("nobody", "one", 5)
    announcer.over("one")
    announcer.announce("nobody", "two", 5)
    assert announcer.told == {"two"}
    announcer.close()
    assert daemon.status().models == []
    assert query_why(daemon.socket_path).policy == policy


def test_no_step_waits_for_a_daemon_that_does_not_listen(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=("--policy", "deadlines"))
    session = DaemonSession(daemon.socket_path, "m")
    assert session.follows_requests
    work = p.Working([], [(1, 1)])
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        assert any(not session.working(work) for _ in range(100_000))
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    until(lambda: session.working(work))
    session.close()
