"""Descriptors that nobody reads: they are the matter of who does not read, not of the others."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest
from daemon_bench import Daemon, RawClient, StartDaemon, fill_socket, until

from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.daemon.in_flight import EACH_MAX, InFlight
from gpupool.daemon.peers import Peer

FILES = 512
_PR_CAPBSET_DROP, _CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 24, 21, 24


def as_ordinary_user() -> None:
    """In the daemon's process: the kernel's limits count, which they do not for root."""
    for capability in (_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE):
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


@pytest.fixture
def ordinary(start_daemon: StartDaemon) -> Daemon:
    return start_daemon(preexec_fn=as_ordinary_user)


@contextlib.contextmanager
def unread(count: int) -> Iterator[None]:
    """So many descriptors of this user that nobody reads, not the daemon's doing."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        null = os.open("/dev/null", os.O_RDONLY)
        for _ in range(0, count, p.FDS_MAX):
            wire.send(here, b"x", [null] * p.FDS_MAX)
        os.close(null)
        yield


def test_peers_that_do_not_read_leave_room_for_the_others(ordinary: Daemon) -> None:
    bystander = ordinary.model("bystander", kv_cache=100)
    silent: list[tuple[RawClient, int]] = []
    for number in range(12):
        client = ordinary.raw()
        assert isinstance(client.ask(p.Hello(p.PROTOCOL_VERSION, f"silent {number}")), p.Welcome)
        silent.append((client, fill_socket(client.socket, wire.encode(p.HostMemory(1)))))
    assert sum(sent for _, sent in silent) > 2 * FILES
    bystander.do("region", "runtime", 100)
    bystander.cycle("kv_cache", 7)
    assert ordinary.status().refusals == []
    # Once they read, each is told all it asked for.
    for client, sent in silent:
        client.socket.setblocking(True)
        assert all(client.receive() == p.HostMemory(1) for _ in range(sent))
    assert ordinary.status().host_bytes == 4096 * (2 + sum(sent for _, sent in silent))


def test_a_peer_waits_while_this_user_has_too_many_in_flight(ordinary: Daemon) -> None:
    bystander = ordinary.model("bystander", kv_cache=100)
    before = ordinary.status().host_bytes
    with unread(FILES + 1):
        bystander.start("region", "runtime", 100)
        until(lambda: ordinary.status().host_bytes > before)  # it is answered, and held
    bystander.answer()
    bystander.cycle("kv_cache", 7)


def test_one_that_goes_while_it_waits_is_forgotten(ordinary: Daemon) -> None:
    with unread(FILES + 1):
        client = ordinary.raw()
        assert isinstance(client.ask(p.Hello(p.PROTOCOL_VERSION, "a")), p.Welcome)
        client.send(p.HostMemory(1))
        until(lambda: ordinary.status().host_bytes)
        mine = len(os.listdir(f"/proc/{ordinary.process.pid}/fd"))  # noqa: PTH208
    client.close()
    # Its host memory is accounted for as long as its process, this one, lives.
    until(
        lambda: len(os.listdir(f"/proc/{ordinary.process.pid}/fd")) < mine  # noqa: PTH208
    )
    assert ordinary.raw().ask(p.Hello(p.PROTOCOL_VERSION, "b")) == p.Welcome(
        "host", 2 << 20, 8 << 20, 8
    )


class Pairs:
    """Connections to peers in this very process."""

    def __init__(self, most: int) -> None:
        self.in_flight = InFlight(most)
        self.theirs: list[socket.socket] = []
        self.peers: list[Peer] = []

    def peer(self) -> Peer:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.append(theirs)
        self.peers.append(Peer(mine, self.in_flight))
        return self.peers[-1]

    def send(self, peer: Peer, count: int) -> bool:
        """Whether it went at once."""
        peer.say(p.Ok(), [os.open("/dev/null", os.O_RDONLY) for _ in range(count)])
        return not peer.sending

    def read(self, number: int) -> int:
        """One packet of that peer's; how many descriptors came along."""
        _, fds = wire.receive(self.theirs[number], p.FDS_MAX)
        for fd in fds:
            os.close(fd)
        return len(fds)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for other in self.theirs:
            other.close()


@pytest.fixture
def pairs(request: pytest.FixtureRequest) -> Iterator[Pairs]:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    pairs = Pairs(request.param)
    yield pairs
    pairs.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("pairs", [10 * EACH_MAX], indirect=True)
def test_a_peer_has_no_more_unread_than_each_may(pairs: Pairs) -> None:
    peer = pairs.peer()
    assert pairs.send(peer, p.FDS_MAX)
    assert pairs.send(peer, p.FDS_MAX)
    assert not peer.held
    assert not pairs.send(peer, 1)
    assert peer.held
    peer.flush()
    assert peer.held
    assert not pairs.send(peer, 0)  # nothing overtakes what is held
    assert pairs.read(0) == p.FDS_MAX
    assert pairs.read(0) == p.FDS_MAX
    peer.flush()
    assert not peer.held
    assert not peer.sending
    assert [pairs.read(0), pairs.read(0)] == [1, 0]


@pytest.mark.parametrize("pairs", [10], indirect=True)
def test_those_with_some_unread_share_what_there_is(pairs: Pairs) -> None:
    first, second, third = (pairs.peer() for _ in range(3))
    assert pairs.send(first, 6)
    assert pairs.send(second, 4)
    assert not pairs.send(first, 1)
    assert pairs.send(third, 100)  # it has nothing unread
    assert not pairs.send(second, 1)
    pairs.read(2)
    pairs.read(1)
    first.flush()
    second.flush()
    assert not first.held
    assert not second.held
    first.close()  # and with it what it had unread
    assert pairs.send(second, 9)


@pytest.mark.parametrize("pairs", [1000], indirect=True)
def test_too_many_references_hold_a_packet_and_lose_nothing(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = pairs.peer()
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError(errno.ETOOMANYREFS, "too many references")

        patch.setattr(wire, "send", refuse)
        assert not pairs.send(peer, 3)
        assert peer.held
        assert not peer.send_failed
    peer.flush()
    assert not peer.held
    assert pairs.read(0) == 3
