"""Clients killed as they park and come back: the ledger returns, and others are unharmed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import parking_life
import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon, until
from forks import Fork, Nursery

PAGES = 8
HELD_BYTES = 2 * PAGE_BYTES - 4096 + 73_728  # of host memory, by each of the two


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


class World:
    """A client that lives on, in a pool whose host memory has no room for another beside it."""

    def __init__(self, nursery: Nursery, daemon: Daemon, folder: Path) -> None:
        self._nursery = nursery
        self._daemon = daemon
        self._folder = folder
        self._generation = 1
        self._other = nursery.fork("puppet", str(daemon.socket_path))
        self._other.join("other", **parking_life.REGIONS)
        self._entering = False
        self._enter()
        self._other.do("stamp", 1)
        self._leave()
        self._other.do("swap_out")

    def close(self) -> None:
        self._other.close()

    def life(self, moment: str, nth: int) -> bool:
        """Whether a client that was to be killed at that moment was."""
        return self._life(moment, nth).result() != 0

    def sent(self) -> set[str]:
        """The messages of a whole life."""
        mortal = self._life("never", 0)
        assert mortal.result() == 0
        return set(mortal.value["sent"])

    def _life(self, moment: str, nth: int) -> Fork:
        owner = f"mortal/{moment}/{nth}"
        socket_path = str(self._daemon.socket_path)
        mortal = self._nursery.fork("parker", socket_path, moment, nth, owner)
        try:
            while (stage := mortal.stage()) is not None:
                if stage == "the other wants in":
                    self._other.start("enter")
                    self._entering = True
                else:
                    self._renew()
                mortal.go_on()
                if stage == "the other wants in":
                    self._enter()
                    self._leave()
            assert mortal.result() in (0, -signal.SIGKILL)
        finally:
            mortal.close()
        self._renew()
        until(lambda: [m.name for m in self._daemon.status().models] == ["other"])
        self._daemon.until_ledger(free=PAGES, host_bytes=HELD_BYTES)
        assert list(self._folder.iterdir()) == []
        return mortal

    def _renew(self) -> None:
        """It has what it had, and has something else from now on."""
        self._enter()
        self._generation += 1
        self._other.do("renew", self._generation)
        self._leave()
        self._other.do("swap_out")

    def _enter(self) -> None:
        if not self._entering:
            self._other.start("enter")
        self._other.answer()
        self._entering = False

    def _leave(self) -> None:
        self._other.do("leave")


@pytest.fixture
def world(nursery: Nursery, start_daemon: StartDaemon, directory: Path) -> Iterator[World]:
    folder = directory / "parked"
    daemon = start_daemon(
        pages=PAGES,
        options=(
            *("--host-budget-bytes", str(2 * HELD_BYTES - 4096)),
            *("--parking-folder", str(folder)),
        ),
    )
    world = World(nursery, daemon, folder)
    yield world
    world.close()


def test_a_life_has_every_message_about_parking(world: World) -> None:
    """So that the clients below die at each of them."""
    messages = {"HostMemories", "HostMemoryUnused", "Parkable", "Parked", "Unparked", "Yielded"}
    assert messages <= world.sent()


LEAST = {
    **{"send-after": 20, "receive-after": 12, "call-after": 80},
    **{"write-before": 4, "write-after": 4, "read-before": 4, "read-after": 4},
}


@pytest.mark.parametrize("moment", LEAST)
def test_a_client_killed_as_it_parks_or_comes_back(world: World, moment: str) -> None:
    kills = 0
    while world.life(moment, kills + 1):
        kills += 1
    assert kills >= LEAST[moment]
