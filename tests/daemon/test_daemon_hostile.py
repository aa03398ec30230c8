"""Hostile bytes: the daemon stays up, and clients that did nothing wrong do not notice."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from daemon_bench import Daemon, Puppet, StartDaemon, fill_socket, until

from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.daemon.link import connect

NAN = float("nan")
HELLO = p.Hello(p.PROTOCOL_VERSION, "hostile")
FIGURES = {"total_s": 0.5, "copy_s": 0.25, "copied_bytes": 10}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="gpupool-") as directory:
        daemon = Daemon(Path(directory) / "daemon.sock")
        try:
            yield daemon
            daemon.stop()
        finally:
            daemon.abandon()


@pytest.fixture(scope="module")
def bystander(daemon: Daemon) -> Puppet:
    model = daemon.model("bystander", weights=100, kv_cache=3_000_000)
    model.do("enter")
    model.do("fill", "kv_cache", 7)
    model.do("leave")
    return model


@pytest.fixture
def unharmed(daemon: Daemon, bystander: Puppet) -> Iterator[None]:
    """A model with memory in place: it keeps it through the test, and can swap afterwards."""
    bystander.do("enter")
    yield
    daemon.hang_up()
    assert bystander.do("values", "kv_cache") == [0, 7]  # the padding and the rest
    bystander.do("leave")
    bystander.do("swap_out")
    bystander.do("enter")
    assert bystander.do("values", "kv_cache") == [0, 7]
    until(lambda: len(daemon.status().models) == 1)
    status = daemon.status()  # in a step: a revoke from before may still be under way to it
    assert [m.name for m in status.models] == ["bystander"]
    assert (status.pages_free, status.pages_granted, status.pages_fenced) == (1, 3, 0)
    assert status.host_bytes == 4096 + 3_002_368
    bystander.do("leave")


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


MALFORMED = {
    "no MessagePack": b"\xc1",
    "not a map": msgspec.msgpack.encode([1, 2, 3]),
    "without type": packed(version=1),
    "unknown type": packed(type="Format", disk="c"),
    "a daemon's message": wire.encode(p.Welcome("host", 1, 1, 1)),
    "missing field": packed(type="Hello", version=1),
    "unknown field": packed(type="Acquire", now=True),
    "wrong type": packed(type="Hello", version="1", model="x"),
    "number as name": packed(type="Hello", version=1, model=3),
    "name no UTF-8": packed(type="Hello", version=1, model="xy").replace(b"xy", b"\xff\xfe"),
    "negative": packed(type="HostMemory", size_bytes=-1),
    "huge": packed(type="HostMemory", size_bytes=2**64 - 1),
    "huge footprint": packed(type="Declare", pages=2**63, weights_bytes=0, kv_cache_bytes=0),
    "page beyond any": wire.encode(p.Release([2**32])),
    "footprint beyond any": wire.encode(p.Declare(2**32 + 1, 0, 0)),
    "fraction": packed(type="HostMemory", size_bytes=1.5),
    "no number": packed(type="Arrived", swap=FIGURES | {"total_s": NAN}),
    "infinite": packed(type="Arrived", swap=FIGURES | {"copy_s": float("inf")}),
    "negative time": packed(type="Arrived", swap=FIGURES | {"copy_s": -1.0}),
    "truncated": wire.encode(HELLO)[:-3],
    "two in one": wire.encode(p.Acquire()) * 2,
    "deep": b"\x91" * 100_000,
    "long text": packed(type="Kept", message="m" * 200_000)[: p.MESSAGE_BYTES_MAX],
}


@pytest.mark.usefixtures("unharmed")
class TestPackets:
    @pytest.mark.parametrize("packet", MALFORMED.values(), ids=MALFORMED.keys())
    def test_malformed(self, daemon: Daemon, packet: bytes) -> None:
        fresh = daemon.raw()
        fresh.send_bytes(packet)
        assert fresh.dismissed_for().startswith("malformed message: ")
        joined = daemon.raw()
        assert isinstance(joined.ask(HELLO), p.Welcome)
        joined.send_bytes(packet)
        assert joined.dismissed_for().startswith("malformed message: ")
        assert daemon.raw().ask(HELLO) == p.Welcome("host", 2 << 20, 8 << 20, 8)  # the name is free

    def test_random_bytes(self, daemon: Daemon) -> None:
        chance = random.Random(1)
        valid = [
            wire.encode(m) for m in (HELLO, p.HostMemory(100), p.Declare(1, 2, 3), p.Idle(True))
        ]
        for number in range(300):
            client = daemon.raw()
            if number % 2:
                assert isinstance(client.ask(p.Hello(p.PROTOCOL_VERSION, f"{number}")), p.Welcome)
            if number % 3:
                packet = bytearray(chance.choice(valid))
                for _ in range(chance.randint(1, 4)):
                    packet[chance.randrange(len(packet))] = chance.randrange(256)
            else:
                packet = bytearray(chance.randbytes(chance.randint(1, 3000)))
            client.send_bytes(bytes(packet))
            client.close()
        until(lambda: len(daemon.status().models) == 1)

    def test_larger_than_a_packet_may_be(self, daemon: Daemon) -> None:
        client = daemon.raw()
        client.send_bytes(bytes(p.MESSAGE_BYTES_MAX + 1))
        assert client.dismissed_for() == f"a message is larger than {p.MESSAGE_BYTES_MAX} bytes"

    def test_empty(self, daemon: Daemon) -> None:
        client = daemon.raw()
        client.send_bytes(b"")
        assert client.socket.recv(1) == b""

    def test_descriptors_attached(self, daemon: Daemon) -> None:
        # Known by its name: how many descriptors there are depends on whether the daemon has seen
        # the end of an earlier client's connection.
        name = f"attached-{os.getpid()}"
        client = daemon.raw()
        fds = [os.memfd_create(name) for _ in range(p.FDS_MAX)]
        wire.send(client.socket, wire.encode(HELLO), fds)
        for fd in fds:
            os.close(fd)
        assert client.dismissed_for() == "a client sent descriptors"
        until(lambda: not any(name in target for target in open_in(daemon)))

    @pytest.mark.parametrize(
        "messages",
        [
            [p.Acquire()],
            [p.HostMemory(100)],
            [p.Goodbye()],
            [p.Yielded(None)],
            [HELLO, HELLO],
            [HELLO, p.Arrived(p.SwapFigures(0.0, 0.0, 0))],
            [HELLO, p.Yielded(None)],
        ],
        ids=lambda messages: "+".join(type(m).__name__ for m in messages),
    )
    def test_out_of_turn(self, daemon: Daemon, messages: list[msgspec.Struct]) -> None:
        client = daemon.raw()
        for message in messages[:-1]:
            client.ask(message)
        client.send(messages[-1])
        assert client.dismissed_for()

    @pytest.mark.parametrize(
        ("asks", "why"),
        [
            ([p.Acquire()], "asked for memory while out"),
            ([p.Declare(0, 0, 0)], "at least one page"),
            ([p.HostMemory(0)], "at least one byte"),
            ([p.HostMemory(2**50)], "of the host budget are free"),
            ([p.Declare(4, 0, 0), p.Acquire(), p.Acquire()], "asked for memory while waiting"),
            ([p.Declare(4, 0, 0), p.Acquire(), p.Declare(1, 0, 0)], "while waiting"),
        ],
    )
    def test_an_impossible_request_is_refused_and_the_session_goes_on(
        self, daemon: Daemon, asks: list[msgspec.Struct], why: str
    ) -> None:
        client = daemon.raw()
        assert isinstance(client.ask(HELLO), p.Welcome)
        for ask in asks:
            client.send(ask)
        while not isinstance(reply := client.receive(), p.Refused):
            assert reply == p.Ok()
        assert why in reply.message
        assert daemon.status().refusals[-1].message == reply.message
        client.send(p.Cancel())
        if p.Acquire() in asks[:-1]:
            assert client.receive() == p.Ok()
        assert client.ask(p.Declare(2, 0, 0)) == p.Ok()
        client.close()
        until(lambda: len(daemon.status().models) == 1)


@pytest.mark.usefixtures("unharmed")
class TestFloods:
    def test_a_client_that_asks_and_never_reads(self, daemon: Daemon) -> None:
        client = daemon.raw()
        query = wire.encode(p.StatusQuery())
        sent = fill_socket(client.socket, query)
        until(lambda: daemon.status())  # others are answered
        sent += fill_socket(client.socket, query)
        assert sent > 0
        client.socket.setblocking(True)
        assert all(isinstance(client.receive(), p.StatusReply) for _ in range(sent))

    def test_connections_that_say_nothing(self, daemon: Daemon) -> None:
        silent = []
        for _ in range(3000):
            client = connect(daemon.socket_path, 60.0)
            silent.append(client)
            if len(silent) > 1500:
                silent.pop(0).close()
        assert daemon.status().pages_granted == 3
        for client in silent:
            client.close()
        until(lambda: descriptors_of(daemon) < 40)

    def test_a_connection_closed_before_it_is_accepted(self, daemon: Daemon) -> None:
        for _ in range(500):
            connect(daemon.socket_path, 60.0).close()
        assert daemon.status().pages_granted == 3

    def test_half_closed_connections(self, daemon: Daemon) -> None:
        for how in (socket.SHUT_RD, socket.SHUT_WR):
            client = daemon.raw()
            assert isinstance(client.ask(HELLO), p.Welcome)
            client.socket.shutdown(how)
            if how == socket.SHUT_RD:
                client.send(p.StatusQuery())
                client.close()
            until(lambda: len(daemon.status().models) == 1)


def open_in(daemon: Daemon) -> list[str]:
    """What each descriptor of the daemon refers to."""
    targets = []
    for descriptor in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(str(descriptor.readlink()))
    return targets


def descriptors_of(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))  # noqa: PTH208


def test_few_descriptors_limit_connections_not_the_daemon(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)))
    model = daemon.model("a", kv_cache=100)
    silent = [connect(daemon.socket_path, 60.0) for _ in range(300)]
    model.do("enter")
    assert daemon.status().pages_granted == 1
    joined = 0
    reply: object = p.Welcome("", 0, 0, 0)
    while isinstance(reply, p.Welcome):
        joined += 1
        client = daemon.raw()
        with contextlib.suppress(ConnectionError):  # dismissed before it said anything
            client.send(p.Hello(p.PROTOCOL_VERSION, f"worker {joined}"))
        reply = client.receive()
    assert reply == p.Dismissed(f"the daemon has {joined} workers already")
    assert model.do("values", "kv_cache") == [0]
    for connection in silent:
        connection.close()
    daemon.hang_up()
    until(lambda: len(daemon.status().models) == 1)


def test_too_few_descriptors_for_the_pool_are_an_error_at_the_start(
    start_daemon: StartDaemon,
) -> None:
    with pytest.raises(AssertionError, match=r"40 pages need a limit of at least 176 open files"):
        start_daemon(
            pages=40, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        )


def test_a_soft_limit_is_raised(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(
        pages=40, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
    )
    assert daemon.status().pages_free == 40
