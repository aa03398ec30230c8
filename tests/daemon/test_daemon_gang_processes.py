"""Ranks that are stopped, as by SIGSTOP, and daemons that die: who notices, and how."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_bench import DEADLINE_S, PAGE_BYTES, Daemon, StartDaemon, until
from gang_process_bench import PAGES, MakeProcesses, processes_of

ENDED = "GangBrokenError: "


@pytest.fixture
def make() -> Iterator[MakeProcesses]:
    with processes_of() as make:
        yield make


def start(start_daemon: StartDaemon, directory: Path, count: int, *options: str) -> list[Daemon]:
    """Devices with room for one model each."""
    paths = [directory / f"{number}.sock" for number in range(count)]
    return [start_daemon(socket_path=path, pages=PAGES, options=options) for path in paths]


@pytest.mark.parametrize("rank", range(2))
def test_a_rank_that_is_stopped_for_a_while_is_waited_for(
    start_daemon: StartDaemon, directory: Path, make: MakeProcesses, rank: int
) -> None:
    daemons = start(start_daemon, directory, 2, "--revoke-timeout-s", "600")
    stopped, other = make(daemons, "stopped"), make(daemons, "other")
    stopped.do("enter")
    stopped.do("fill", "runtime", 5)
    stopped.do("leave")
    # While it is asked for its memory.
    stopped.signal(rank, signal.SIGSTOP)
    other.start("enter")
    daemons[0].until_state("stopped", "leaving")
    stopped.signal(rank, signal.SIGCONT)
    other.answers()
    # While it waits in line, and is granted its memory.
    stopped.start("enter")
    daemons[0].until_state("stopped", "waiting")
    stopped.signal(rank, signal.SIGSTOP)
    other.do("leave")
    daemons[0].until_state("stopped", "resident")
    stopped.signal(rank, signal.SIGCONT)
    stopped.answers()
    assert stopped.do("values", "runtime") == [[5]] * 2
    stopped.do("leave")


def test_a_first_rank_that_is_stopped_for_good_is_killed_when_its_memory_is_wanted(
    start_daemon: StartDaemon, directory: Path, make: MakeProcesses
) -> None:
    daemons = start(start_daemon, directory, 2, "--revoke-timeout-s", "2")
    stopped, other = make(daemons, "stopped"), make(daemons, "other")
    stopped.do("enter")
    stopped.do("leave")
    stopped.signal(0, signal.SIGSTOP)
    other.do("enter")
    assert stopped.ranks[0].ended_by() == signal.SIGKILL
    stopped.ranks[1].start("enter")
    assert stopped.error(1) == ENDED + "the engine's first rank has ended"
    other.do("leave")


def test_a_rank_that_is_stopped_for_good_is_killed_when_its_memory_is_wanted(
    start_daemon: StartDaemon, directory: Path, make: MakeProcesses
) -> None:
    daemons = start(start_daemon, directory, 2, "--revoke-timeout-s", "4")
    stopped = make(daemons, "stopped")
    stopped.do("enter")
    stopped.do("leave")
    stopped.signal(1, signal.SIGSTOP)
    # The other rank is asked, which is not stopped: it goes without it.
    first = daemons[0].model("first", weights=PAGES * PAGE_BYTES)
    first.do("enter")
    first.do("leave")
    stopped.ranks[0].start("enter")
    assert "another rank did not answer" in stopped.error(0)
    second = daemons[1].model("second", weights=PAGES * PAGE_BYTES)
    second.do("enter")
    second.do("leave")
    assert stopped.ranks[1].ended_by() == signal.SIGKILL
    (refusal,) = [told for told in daemons[1].status().refusals if told.model == "stopped"]
    assert "killed" in refusal.message
    assert not daemons[0].status().refusals


@pytest.mark.parametrize("rank", range(2))
def test_a_daemon_that_is_killed_takes_those_engines_with_it_that_use_its_device(
    start_daemon: StartDaemon, directory: Path, make: MakeProcesses, rank: int
) -> None:
    """As two engines take turns on the device that they have in common."""
    daemons = start(start_daemon, directory, 3)
    first, last = make(daemons[:2], "first"), make(daemons[1:], "last")
    dead, ends, goes_on = (0, first, last) if rank == 0 else (2, last, first)
    for engine in (first, last):
        engine.start("steps", 10**6 if engine is ends else 100)

    def take_turns() -> bool:
        told = [daemons[1].model_status(engine.name) for engine in (first, last)]
        return all(model is not None and model.swap_ins > 2 for model in told)

    until(take_turns)
    daemons[dead].process.kill()
    assert daemons[dead].process.wait(DEADLINE_S)
    ended = [ends.error(0), ends.error(1)]
    assert ended[rank].startswith("DaemonUnavailableError: the pool daemon went away")
    assert ended[1 - rank].startswith(f"{ENDED}rank {rank} failed: the pool daemon went away")
    assert goes_on.answers() == [100] * 2
    assert goes_on.do("steps", 20) == [20] * 2
    daemons[1].until_state(ends.name, "out")
    assert not daemons[1].status().refusals
    daemons[dead].abandon()
