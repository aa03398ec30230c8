"""Engines of several ranks over a real daemon for each device."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemon_bench import Daemon, StartDaemon, until
from gang_bench import PAGES, Engine

from gpupool.daemon.client import DaemonSession
from gpupool.daemon.protocol import MESSAGE_BYTES_MAX
from gpupool.daemon.queries import prefetch
from gpupool.errors import (
    DriverError,
    GangBrokenError,
    LeaseTimeoutError,
    UsageError,
)
from gpupool.gang import protocol as g
from gpupool.gang.member import Member
from gpupool.gang.rank import GangRank
from gpupool.gang.serving import LeaderThread
from gpupool.model import Model

MakeEngine = Callable[..., Engine]


@pytest.fixture
def daemons(start_daemon: StartDaemon, directory: Path) -> list[Daemon]:
    """Two devices, each with room for one model."""
    return [start_daemon(socket_path=directory / f"{i}.sock", pages=PAGES) for i in range(2)]


@pytest.fixture
def make_engine(daemons: list[Daemon]) -> Iterator[MakeEngine]:
    made: list[Engine] = []

    def make(name: str, **more: int) -> Engine:
        made.append(Engine(daemons, name, **more))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.mark.parametrize("seed", range(3))
def test_engines_take_turns_step_for_step(
    make_engine: MakeEngine, daemons: list[Daemon], seed: int
) -> None:
    engines = [make_engine(f"m{number}", min_steps=seed) for number in range(3)]
    session = DaemonSession(daemons[1].socket_path, "of one device")
    alone = Model("of one device", session)
    region = alone.region("weights", PAGES * (2 << 20))
    stop = threading.Event()

    def come_and_go() -> int:
        times = 0
        while not stop.is_set():
            with alone.resident():
                assert region.address
            times += 1
        return times

    with ThreadPoolExecutor(4) as threads:
        other = threads.submit(come_and_go)
        running = [
            threads.submit(engine.run, 40, seed=seed, pauses=number == 0)
            for number, engine in enumerate(engines)
        ]
        ended = [future.result() for future in running]
        stop.set()
        times = other.result()
    assert ended == [[None, None]] * 3
    for engine in engines:
        assert [rank.steps for rank in engine.ranks] == [40, 40]
        assert len(set(engine.swap_ins)) == 1  # all ranks had the same turns
    swaps = sum(sum(engine.swap_ins) for engine in engines)
    print(f"seed {seed}: {swaps} swap-ins of ranks, {times} of the model of one device")
    assert swaps > 12
    assert times > 2
    alone.close()


def test_a_rank_whose_memory_does_not_come_ends_its_engine_alone(
    make_engine: MakeEngine, daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, well = make_engine("broken"), make_engine("well")
    assert broken.run(3) == [None, None]
    assert well.run(2) == [None, None]

    def fails(*_: object) -> None:
        raise DriverError("no memory today", "map", 2)

    monkeypatch.setattr(broken.ranks[1].model._residency, "_arrive", fails)
    first, second = broken.run(3)
    assert isinstance(second, DriverError)
    assert isinstance(first, GangBrokenError)
    assert "rank 1 failed" in str(first)
    assert "no memory today" in str(first)
    with pytest.raises(GangBrokenError, match="no memory today"):
        broken.ranks[0].model.gate.open_step()
    assert well.run(20) == [None, None]
    assert not any(rank.model.gate.is_resident for rank in broken.ranks)


def test_a_rank_that_ends_is_not_waited_for(make_engine: MakeEngine) -> None:
    ends, well = make_engine("ends"), make_engine("well")
    assert ends.run(3) == [None, None]
    ends.ranks[1].close()
    until(lambda: bool(ends.ranks[0].model.gate._standing.broken))  # type: ignore[attr-defined]
    with pytest.raises(GangBrokenError, match="rank 1 of the engine has ended"):
        ends.ranks[0].model.gate.open_step()
    assert well.run(10) == [None, None]  # what the other rank had went without it


def test_the_first_rank_leads_and_its_end_is_heard(make_engine: MakeEngine) -> None:
    engine = make_engine("m")
    assert engine.run(1) == [None, None]
    engine.ranks[0].close()
    until(lambda: bool(engine.ranks[1].model.gate._standing.broken))  # type: ignore[attr-defined]
    with pytest.raises(GangBrokenError, match=r"ended|went away"):
        engine.ranks[1].model.gate.open_step()


def test_a_step_that_only_one_rank_has_is_refused_in_time(make_engine: MakeEngine) -> None:
    engine = make_engine("m")
    assert engine.run(2) == [None, None]
    for rank in engine.ranks:
        rank.model.swap_out()
    with pytest.raises(LeaseTimeoutError, match="not all ranks of the engine could ask for its"):
        engine.ranks[0].model.gate.open_step(0.2)
    with pytest.raises(GangBrokenError, match="rank 0 failed"):
        engine.ranks[1].model.gate.open_step()


def test_nothing_is_fetched_ahead_for_a_gang(
    make_engine: MakeEngine, daemons: list[Daemon]
) -> None:
    engine = make_engine("m")
    for daemon in daemons:
        prefetch(daemon.socket_path, "m")
    assert engine.run(2) == [None, None]
    assert not engine.ranks[0].model.gate.fetch_ahead(1.0)


def test_the_socket_of_a_gang_goes_once_all_are_there(
    make_engine: MakeEngine, directory: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(str(directory / "gang-0.sock"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as begins:
        begins.bind(str(directory / "gang-1.sock"))
        begins.listen()
        make_engine("m")
        until(lambda: [path.name for path in directory.glob("gang-*")] == ["gang-1.sock"])


def refused(daemons: list[Daemon], words: str, *, rank: int = 0) -> None:
    sockets = [str(daemon.socket_path) for daemon in daemons]
    with pytest.raises(UsageError, match=words):
        GangRank(sockets, "m", rank, "engine")


def test_devices_are_named_once_and_in_order(daemons: list[Daemon]) -> None:
    refused(daemons[::-1], "in alphabetical order")
    refused(daemons[:1] * 2, "in alphabetical order")


def test_links_do_not_alter_the_order(daemons: list[Daemon], directory: Path) -> None:
    first, second = (daemon.socket_path.resolve() for daemon in daemons)
    links = [directory / "a.sock", directory / "b.sock"]
    for link, path in zip(links, (second, first), strict=True):
        link.symlink_to(path)
    words = f"these are {second}, {first}"
    for named in (links, [first, links[1]]):
        with pytest.raises(UsageError, match="in alphabetical order"):
            GangRank([str(path) for path in named], "m", 0, "engine")
    with pytest.raises(UsageError, match=words):
        GangRank([str(path) for path in links], "m", 0, "engine")


def test_pools_that_choose_for_one_device_are_refused(
    start_daemon: StartDaemon, directory: Path
) -> None:
    folder = directory / "parked"
    folder.mkdir()
    choices = ("--policy", "fcfs"), ("--parking-folder", str(folder))
    for number, (options, words) in enumerate(
        zip(choices, ("use --policy turns", "parks images"), strict=True)
    ):
        daemon = start_daemon(socket_path=directory / f"first{number}.sock", options=options)
        other = start_daemon(socket_path=directory / f"second{number}.sock")
        refused([daemon, other], words)
        assert not list(directory.glob("gang-*"))
        until(lambda daemon=daemon: daemon.status().models == [])  # type: ignore[misc]


def test_a_rank_without_a_leader_says_so(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GangBrokenError, match="the first rank of the engine does not listen on"):
        Member(daemons[0].socket_path.with_name("nobody.sock"), 1, 2, 0.0)


@pytest.fixture
def leader(directory: Path) -> Iterator[Path]:
    thread = LeaderThread(directory / "gang.sock", 2)
    yield directory / "gang.sock"
    thread.close()
    assert not (directory / "gang.sock").exists()


class Spoken:
    """What a member was told."""

    def __init__(self) -> None:
        self.why = threading.Event()
        self.reason = ""

    def halt(self, turn: int, hurry_at_s: float | None) -> int:
        return 0

    def part(self, turn: int, step: int) -> bool:
        return False

    def stay(self, turn: int) -> None:
        raise AssertionError("nobody asked")

    def leave(self) -> None:
        raise AssertionError("nobody asked")

    def broken(self, why: str) -> None:
        self.reason = why
        self.why.set()


def strange(path: Path, *packets: bytes) -> str:
    """Say something to a leader; what it answers to the last."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(path))
        connection.settimeout(20)
        for packet in packets:
            connection.send(packet)
        answer = g.decode_of_leader(connection.recv(1 << 16))
        assert isinstance(answer, g.Broken)
        assert connection.recv(1) == b""
        return answer.why


def test_strangers_do_not_end_a_gang(leader: Path) -> None:
    assert "malformed" in strange(leader, b"\xff\x00")
    assert "is Join" in strange(leader, g.encode(g.Wants(1)))
    assert "the same gpupool" in strange(leader, g.encode(g.Join(99, 0, 2)))
    assert "no place" in strange(leader, g.encode(g.Join(g.GANG_VERSION, 0, 3)))
    assert "no place" in strange(leader, g.encode(g.Join(g.GANG_VERSION, 5, 2)))
    first, second = Member(leader, 0, 2, 20.0), Member(leader, 1, 2, 20.0)
    told = [Spoken(), Spoken()]
    for rank, one in zip((first, second), told, strict=True):
        rank.start(one)
        rank.say(g.Wants(1))
    first.await_come(1, 20.0)
    with pytest.raises(LeaseTimeoutError):
        second.await_come(1, 0.0)
    first.granted()
    second.await_come(1, 20.0)
    second.say(g.Join(g.GANG_VERSION, 1, 2))  # what a rank cannot have meant
    for one in told:
        assert one.why.wait(20)
        assert "rank 1 said Join out of turn" in one.reason
    with pytest.raises(GangBrokenError, match="out of turn"):
        first.await_go(1, 20.0)
    for rank in (first, second):
        rank.close()
        rank.close()


def test_a_rank_joins_once(leader: Path) -> None:
    first = Member(leader, 0, 2, 20.0)
    assert "no place" in strange(leader, g.encode(g.Join(g.GANG_VERSION, 0, 2)))
    first.close()


def test_reasons_are_short_and_of_one_line() -> None:
    assert g.reason("a\n b " + "c" * 5000).startswith("a b ccc")
    for message in (g.Failed(g.reason("x" * 5000)), g.Broken(g.reason("ü" * 5000))):
        assert len(g.encode(message)) < MESSAGE_BYTES_MAX
