"""What goes wrong in one rank, late or at the same time as something else, is heard by all."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ranks_bench import FOR_EVER_S, PATIENCE_S, Ranks, ranks_of

from gpupool.errors import DriverError, GangBrokenError, LeaseTimeoutError, UsageError
from gpupool.gang import protocol as g
from gpupool.gang.gate import GangGate
from gpupool.gang.leader import Leader
from gpupool.residency import State
from tests.core.gate_bench import Clock, Longer


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    with ranks_of(tmp_path / "gang.sock") as found:
        yield found


def refused(gate: GangGate, words: str) -> None:
    with pytest.raises(GangBrokenError, match=words):
        gate.open_step()


def test_leaving_by_oneself_that_fails_ends_the_gang(ranks: Ranks) -> None:
    ranks.step()
    ranks.memories[1].fails_to_go = DriverError("not today", "unmap", 1)
    first, second = ranks.all_at_once(GangGate.give_up)
    assert first is None
    assert isinstance(second, DriverError)
    refused(ranks.gates[0], "rank 1 failed: not today")  # rather than wait for the other


def test_leaving_in_a_step_of_ones_own_is_refused_and_changes_nothing(ranks: Ranks) -> None:
    def within(gate: GangGate) -> None:
        with gate.hold():
            gate.give_up()

    for error in ranks.all_at_once(within):
        assert isinstance(error, UsageError)
    ranks.step()


def test_a_step_that_does_not_open_in_time_ends_the_gang(ranks: Ranks) -> None:
    """Or steps would have other numbers in this rank from then on."""
    ranks.step()
    assert ranks.gates[1].halt(1, None) == 1
    with pytest.raises(LeaseTimeoutError, match="a model that is resident"):
        ranks.gates[1].open_step(0.0)
    with pytest.raises(GangBrokenError, match="rank 1 failed: waited 0 s"):
        ranks.members[0].await_go(2, PATIENCE_S)


def test_a_late_word_to_leave_is_not_of_the_next_turn(ranks: Ranks) -> None:
    ranks.step()
    assert ranks.gates[0].part(1, 1)
    assert ranks.all_at_once(GangGate.give_up) == [None, None]
    ranks.step()
    ranks.beside(lambda: ranks.gates[0].leave(1)).result(PATIENCE_S)  # does not wait for the end
    assert ranks.gates[0].is_resident
    ranks.step()


def test_who_was_asked_for_pages_keeps_no_more_than_it_may(ranks: Ranks) -> None:
    ranks.step()
    gate = ranks.gates[1]
    ranks.beside(lambda: gate.give_up(FOR_EVER_S, lambda: False, 7)).result(PATIENCE_S)
    while ranks.memories[0].resident:
        time.sleep(0.001)
    assert ranks.memories[1].kept == [7]
    assert ranks.memories[0].kept[0] > 7


def test_who_waits_to_leave_does_so_with_what_it_may_keep(ranks: Ranks) -> None:
    ranks.step()
    gate = ranks.gates[1]
    gate.open_step()
    revoke = ranks.beside(lambda: gate.give_up(FOR_EVER_S, lambda: False, 7))
    while gate._revokes.count == 0:
        time.sleep(0.001)
    assert not gate.part(1, 2)  # nobody else is to
    gate.close_step()
    assert revoke.result(PATIENCE_S) is True
    assert ranks.memories[1].kept == [7]


def test_memory_that_came_in_vain_and_does_not_go_is_not_lost(ranks: Ranks) -> None:
    ranks.memories[1].fails_to_come = DriverError("no memory", "map", 2)
    ranks.memories[0].fails_to_go = DriverError("busy", "unmap", 1)
    first, _ = ranks.all_at_once(GangGate.open_step)
    assert isinstance(first, DriverError)
    refused(ranks.gates[0], "rank 1 failed: no memory")
    assert ranks.gates[0].is_resident
    ranks.memories[0].fails_to_go = None
    assert ranks.gates[0].give_up(FOR_EVER_S, lambda: False)
    assert not ranks.memories[0].resident


@pytest.mark.parametrize("rank", range(2))
def test_a_gate_that_closes_is_not_waited_for(ranks: Ranks, rank: int) -> None:
    gate = ranks.gates[rank]
    step = ranks.beside(gate.open_step)  # which the other rank does not have
    while gate._state is not State.ARRIVING:
        time.sleep(0.001)
    assert ranks.beside(gate.close).result(PATIENCE_S) is True
    with pytest.raises(GangBrokenError, match="it was closed"):
        step.result(PATIENCE_S)
    with pytest.raises(GangBrokenError, match=f"rank {rank} (failed|of the engine has ended)"):
        ranks.members[1 - rank].await_come(1, PATIENCE_S)


def test_a_reason_that_is_no_proper_text_is_heard_all_the_same(ranks: Ranks) -> None:
    ranks.memories[1].fails_to_come = OSError("no \udcff\0 file")
    _, second = ranks.all_at_once(GangGate.open_step)
    assert isinstance(second, OSError)
    refused(ranks.gates[0], "rank 1 failed: no")


def test_what_has_waited_for_others_is_cut_short_when_it_was_due(tmp_path: Path) -> None:
    """Not that much later: the daemon of who was asked has a deadline."""
    with ranks_of(tmp_path / "gang.sock", min_steps=1000, pause_s=FOR_EVER_S) as ranks:
        ranks.all_at_once(lambda gate: gate.set_idle(False))
        ranks.step()
        halts = ranks.beside(lambda: ranks.gates[0].halt(1, time.monotonic() - 1.0))
        assert halts.result(PATIENCE_S) == 1
        assert ranks.gates[0]._turn.hurry_at_s == math.inf  # for the next turn
        ranks.all_at_once(lambda gate: gate.set_idle(True))


def test_a_long_step_that_begins_as_all_are_to_leave_does_not_end_the_gang(
    tmp_path: Path,
) -> None:
    clock = Clock()
    with ranks_of(tmp_path / "gang.sock", clock=clock) as ranks, ThreadPoolExecutor() as others:
        assert set(ranks.all_at_once(lambda gate: gate.open_step())) == {None}
        later = [Longer() for _ in ranks.gates]
        gone = [
            others.submit(gate.give_up, 10.0, lambda: False, longer_s=longer_s)
            for gate, longer_s in zip(ranks.gates, later, strict=True)
        ]
        for longer_s in later:
            longer_s.seen()
            longer_s.by_s = 90.0
        clock.now_s += 50.0
        for longer_s in later:
            longer_s.seen()
        ranks.all_at_once(lambda gate: gate.close_step())
        for leaves in gone:
            leaves.result(PATIENCE_S)
        assert not any(memory.resident for memory in ranks.memories)
        ranks.step()


def test_the_earliest_wish_counts() -> None:
    leader = Leader(3)
    for rank in range(3):
        leader.heard(rank, g.Wants(1))
    for rank in range(3):
        leader.heard(rank, g.Granted())
    assert leader.heard(1, g.Leave(1, 9.0)) == []
    assert leader.heard(0, g.Leave(1, 8.0)) == []
    assert leader.heard(0, g.Here()) == leader.heard(1, g.Here()) == []
    assert leader.heard(2, g.Here())[-1] == (0, g.Halt(1, 8.0))
    assert leader.heard(2, g.Leave(1, 1.0)) == []
