"""Clients and daemons killed at every driver call and every message: the others go on unharmed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import death
import pytest
from daemon_bench import PAGE_BYTES, PuppetError, StartDaemon, until
from forks import Fork, Nursery
from kill_bench import World

from gpupool.daemon.protocol import ClientMessage
from gpupool.daemon.queries import query_status
from gpupool.errors import DaemonUnavailableError


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def world(nursery: Nursery, start_daemon: StartDaemon) -> Iterator[World]:
    daemon = start_daemon(pages=World.PAGES, options=("--turn-ms", "1000000"))
    world = World(nursery, daemon)
    yield world
    world.close()


@pytest.fixture
def sweep(capsys: pytest.CaptureFixture[str]) -> Callable[[str, Callable[[int], bool]], int]:
    """Calls with 1, 2, ... until nothing was killed; prints and returns how often that was."""

    def run(what: str, kills_at: Callable[[int], bool]) -> int:
        began_s = time.monotonic()
        kills = 0
        while kills_at(kills + 1):
            kills += 1
        took_s = time.monotonic() - began_s
        with capsys.disabled():
            print(f"\n{what}: kills={kills} ({took_s:.1f} s)")
        return kills

    return run


Sweep = Callable[[str, Callable[[int], bool]], int]


# Calls that no client makes, and who does.
NOT_A_CLIENTS = {
    "page_create": "the daemon, which makes all pages",
    "page_export": "the daemon, which hands them out",
    "memory_info": "nobody so far",
    "stream_wait_event": "users of the C++ core",
}


def test_a_life_has_every_message_and_every_driver_call(world: World) -> None:
    """So that the clients below die at each of them."""
    did = world.census()
    others = {"StatusQuery", "Prefetch", "Damaged", "WrongPages"}  # what no model says that is well
    others |= {"Parkable", "Parked", "Unparked"}  # see test_daemon_parking_kill.py
    others |= {"Announce", "Over", "WhyQuery"}  # what is said without being a model
    assert {*did["sent"], *others} == {kind.__name__ for kind in get_args(ClientMessage)}
    assert set(did["not made"]) == set(NOT_A_CLIENTS)
    assert len(did["made"]) >= 24


@pytest.mark.parametrize("moment", death.CALLS)
def test_a_client_killed_at_every_driver_call(world: World, sweep: Sweep, moment: str) -> None:
    assert sweep(f"client, {moment}", lambda nth: world.life(moment, nth)) > 150


@pytest.mark.parametrize("moment", death.MESSAGES)
def test_a_client_killed_at_every_message(world: World, sweep: Sweep, moment: str) -> None:
    assert sweep(f"client, {moment}", lambda nth: world.life(moment, nth)) >= 15


def test_one_that_hangs_up_has_its_pages_until_it_is_gone(world: World) -> None:
    world.hang_up(burden_bytes=256 << 20)


PAGES = 4
BOTH = {"weights": 5000, "kv_cache": PAGE_BYTES + 1, "runtime": 70_000}  # four pages each

# Who does what; "start" is a command whose answer comes with "answer".
SCRIPT: list[tuple[Any, ...]] = [
    ("a", "join", "a"),
    *(("a", "region", tag, size_bytes) for tag, size_bytes in BOTH.items()),
    ("a", "region", "cudagraph", 4096),
    ("a", "remove", "cudagraph"),
    ("a", "enter"),
    ("a", "resize", "kv_cache", PAGE_BYTES),
    ("a", "resize", "kv_cache", PAGE_BYTES + 1),
    ("a", "stamp", 1),
    ("a", "set_idle", False),
    ("a", "set_idle", True),
    ("b", "join", "b"),
    *(("b", "region", tag, size_bytes) for tag, size_bytes in BOTH.items()),
    ("b", "enter", 0.0),  # and takes that back
    ("a", "leave"),
    ("b", "enter"),
    ("b", "stamp", 1),
    ("a", "start", "enter"),
    ("b", "leave"),
    ("a", "answer"),
    ("a", "check"),
    ("b", "start", "enter"),
    ("a", "leave"),
    ("b", "answer"),
    ("b", "check"),
    ("a", "close"),
    ("b", "leave"),
    ("b", "close"),
]


class Couple:
    """Two clients that take turns in one pool, as far as its daemon lives."""

    def __init__(self, nursery: Nursery, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._clients = {name: nursery.fork("puppet", str(socket_path)) for name in "ab"}
        self._descriptors = {n: c.do("descriptors") for n, c in self._clients.items()}
        self._entering: set[str] = set()
        self._inside: set[str] = set()
        self._closed: set[str] = set()

    def act(self, daemon: Fork) -> None:
        """Do what the script says; an error must be that the daemon is gone."""
        for name, command, *arguments in SCRIPT:
            try:
                self._do(name, command, *arguments)
            except PuppetError as error:
                if arguments == [0.0] and error.kind == "LeaseTimeoutError":
                    continue
                assert error.kind == "DaemonUnavailableError", error
                until(lambda: daemon.gone)
                return

    def _do(self, name: str, command: str, *arguments: Any) -> None:
        client = self._clients[name]
        if command == "start":
            client.start(*arguments)
            self._entering.add(name)
            return
        if command == "answer":
            self._entering.remove(name)
            client.answer()
        else:
            client.do(command, *arguments)
        if command in ("enter", "answer"):
            self._inside.add(name)
        elif command == "leave":
            self._inside.remove(name)
        elif command == "close":
            self._closed.add(name)

    def survive(self) -> None:
        """Nobody is harmed by the daemon's death, and everybody is told of it."""
        for name in list(self._entering):
            try:
                self._do(name, "answer")
            except PuppetError as error:
                assert error.kind == "DaemonUnavailableError", error
        for name in self._clients.keys() - self._closed:
            for refused in self._clients[name].do("survive", name in self._inside):
                assert "the pool daemon went away" in refused

    def begin_anew(self) -> None:
        """With another daemon everything works again."""
        for name, client in self._clients.items():
            client.join(name, **BOTH)
        for generation in (1, 2):
            for client in self._clients.values():
                client.do("enter")
                if generation > 1:
                    client.do("check")
                client.do("stamp", generation)
                client.do("leave")
        for client in self._clients.values():
            client.do("close")

    def end(self) -> None:
        """Leave nothing."""
        for name, client in self._clients.items():
            client.do("forget")
            assert client.do("descriptors") == self._descriptors[name]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def daemon_life(nursery: Nursery, socket_path: Path, moment: str, nth: int) -> bool:
    """Whether a daemon that was to be killed at that moment was."""

    def files() -> list[Path]:
        return list(socket_path.parent.iterdir())

    daemon = nursery.fork("daemon", str(socket_path), PAGES, moment, nth)
    couple = Couple(nursery, socket_path)
    forks: list[Fork | Couple] = [daemon, couple]
    try:
        daemon.answer()
        couple.act(daemon)
        try:
            until(lambda: not query_status(socket_path).models)
        except DaemonUnavailableError:
            pass
        else:
            daemon.terminate()
        if daemon.result() == 0:
            assert files() == []
            couple.end()
            return False
        assert daemon.result() == -signal.SIGKILL
        couple.survive()
        assert files() == [socket_path]
        heir = nursery.fork("daemon", str(socket_path), PAGES, moment, 0)
        forks.append(heir)
        heir.answer()
        couple.begin_anew()
        couple.end()
        heir.terminate()
        assert heir.result() == 0
        assert files() == []
        return True
    finally:
        for fork in forks:
            fork.close()


@pytest.mark.parametrize("moment", ["receive-after", "send-before", "send-after"])
def test_a_daemon_killed_at_every_message(
    nursery: Nursery, directory: Path, sweep: Sweep, moment: str
) -> None:
    def life(nth: int) -> bool:
        return daemon_life(nursery, directory / "daemon.sock", moment, nth)

    assert sweep(f"daemon, {moment}", life) >= 15
