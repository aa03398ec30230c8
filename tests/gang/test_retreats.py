"""Gangs whose memory is wanted elsewhere while some of their ranks wait for their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from ranks_bench import FOR_EVER_S, PATIENCE_S, Ranks, ranks_of

from gpupool.errors import GangBrokenError, NotBegunError
from gpupool.gang import protocol as g
from gpupool.gang.coming import ALL_PAGES
from gpupool.gang.gate import GangGate
from gpupool.gang.leader import Leader, Said
from tests.core.gate_bench import Clock


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    with ranks_of(tmp_path / "gang.sock", ranks=3, clock=Clock()) as made:
        yield made


def until_there(ranks: Ranks, *which: int) -> None:
    while [n for n, memory in enumerate(ranks.memories) if memory.resident] != list(which):
        time.sleep(0.001)


def asks(ranks: Ranks, rank: int, *, keep: int = 0) -> Future[object]:
    """As a daemon does, whose lease is stale once it was given back."""
    memory, gate = ranks.memories[rank], ranks.gates[rank]
    left = len(memory.kept)
    asked = ranks.beside(lambda: gate.give_up(FOR_EVER_S, lambda: len(memory.kept) > left, keep))
    while gate._revokes.count == 0 and not asked.done():
        time.sleep(0.001)
    return asked


def revoke(ranks: Ranks, rank: int, *, keep: int = 0, share: float = 0.6) -> object:
    """The same, and so much of the time goes by that it has."""
    asked = asks(ranks, rank, keep=keep)
    ranks.clock.now_s += share * FOR_EVER_S
    return asked.result(PATIENCE_S)


def test_all_that_have_come_go_back_and_ask_anew(ranks: Ranks) -> None:
    ranks.memories[2].has_lease.clear()
    step = ranks.beside(ranks.step)
    until_there(ranks, 0, 1)
    assert revoke(ranks, 0, keep=7) is False  # it went by itself
    assert ranks.memories[0].kept == [7]
    until_there(ranks, 0, 1)  # again
    assert ranks.memories[1].kept == [ALL_PAGES]  # since nobody asked for it
    assert not step.done()
    ranks.memories[2].has_lease.set()
    step.result(PATIENCE_S)
    assert [gate._standing.opened for gate in ranks.gates] == [1] * 3


def test_who_was_asked_for_its_memory_again_keeps_it_until_it_had_a_step(ranks: Ranks) -> None:
    ranks.memories[2].has_lease.clear()
    step = ranks.beside(ranks.step)
    until_there(ranks, 0, 1)
    revoke(ranks, 1)
    until_there(ranks, 0, 1)
    for _ in range(2):
        with pytest.raises(NotBegunError, match="waits for the devices of other ranks"):
            revoke(ranks, 0)
    both = [asks(ranks, rank) for rank in range(2)]
    ranks.clock.now_s += 0.6 * FOR_EVER_S
    for one in both:
        assert isinstance(one.exception(PATIENCE_S), NotBegunError)
    until_there(ranks, 0, 1)
    ranks.memories[2].has_lease.set()
    step.result(PATIENCE_S)
    until_there(ranks)  # somebody had asked for it
    # The next turn may be given up again before it begins.
    ranks.memories[2].has_lease.clear()
    step = ranks.beside(ranks.step)
    until_there(ranks, 0, 1)
    assert revoke(ranks, 0) is False
    ranks.memories[2].has_lease.set()
    step.result(PATIENCE_S)


def test_a_turn_that_begins_in_time_is_not_given_up(ranks: Ranks) -> None:
    ranks.memories[2].has_lease.clear()
    step = ranks.beside(ranks.step)
    until_there(ranks, 0, 1)
    left = asks(ranks, 0)
    ranks.memories[2].has_lease.set()
    step.result(PATIENCE_S)
    assert left.result(PATIENCE_S) is True
    until_there(ranks)
    assert [len(memory.kept) for memory in ranks.memories] == [1] * 3


def test_nobody_keeps_anything_for_a_rank_that_does_not_answer(ranks: Ranks) -> None:
    """Which is told by its daemon, that ends it at its deadline, or by its end."""
    ranks.memories[2].has_lease.clear()
    step = ranks.beside(ranks.step)
    until_there(ranks, 0, 1)
    revoke(ranks, 0)
    until_there(ranks, 0, 1)
    said = ranks.members[2].say
    ranks.members[2].say = lambda message: None  # type: ignore[method-assign]
    stays = asks(ranks, 0)
    ranks.clock.now_s += 0.6 * FOR_EVER_S
    while ranks._leader._leader.waits != {0, 1}:
        time.sleep(0.001)
    assert not stays.done()
    ranks.clock.now_s += 0.3 * FOR_EVER_S
    assert stays.result(PATIENCE_S) is False  # it went by itself
    ranks.members[2].say = said  # type: ignore[method-assign]
    assert isinstance(step.exception(PATIENCE_S), AssertionError)  # not all had it
    until_there(ranks)
    refused(ranks)


@pytest.mark.parametrize("rank", range(3))
def test_a_rank_that_hears_nothing_leaves_alone_in_time(ranks: Ranks, rank: int) -> None:
    ranks.step()
    silent = (rank + 1) % 3
    ranks.members[silent].say = lambda message: None  # type: ignore[method-assign]
    ranks.gates[silent].halt(1, None)  # it runs no further
    assert revoke(ranks, rank, keep=7, share=0.9) is True
    assert ranks.memories[rank].kept == [7]
    refused(ranks)


def refused(ranks: Ranks) -> None:
    for gate in ranks.gates:
        while not gate._standing.broken:
            time.sleep(0.001)
        with pytest.raises(GangBrokenError, match="another rank did not answer"):
            gate.open_step()


def test_an_end_is_heard_while_a_lease_is_waited_for(ranks: Ranks) -> None:
    ranks.memories[1].has_lease.clear()
    step = ranks.beside(lambda: ranks.all_at_once(GangGate.open_step))
    until_there(ranks, 0)
    ranks.members[2].hang_up("test")
    ended = step.result(PATIENCE_S)
    assert isinstance(ended, list)
    assert {type(error) for error in ended} == {GangBrokenError}
    until_there(ranks)


def test_who_is_in_a_step_leaves_with_the_others_all_the_same(ranks: Ranks) -> None:
    with ThreadPoolExecutor(3) as engine:  # whose threads do nothing else
        list(engine.map(GangGate.open_step, ranks.gates))
        asked = asks(ranks, 1)
        ranks.clock.now_s += 0.9 * FOR_EVER_S
        while ranks._leader._leader.halted != {0: 1, 1: 1, 2: 1}:
            time.sleep(0.001)
        assert not asked.done()
        for gate in ranks.gates[::-1]:
            gate.close_step()
    assert asked.result(PATIENCE_S) is True
    until_there(ranks)
    ranks.step()


def leader_of_two(*said: tuple[int, g.RankMessage]) -> tuple[Leader, list[Said]]:
    """Who has heard that both want a turn, that the first has its lease, and this; the answer."""
    leader = Leader(2)
    last: list[Said] = []
    for rank, message in [(0, g.Wants(1)), (1, g.Wants(1)), (0, g.Granted()), *said]:
        last = leader.heard(rank, message)
    return leader, last


BEGUN: list[tuple[int, g.RankMessage]] = [(0, g.Here()), (1, g.Granted()), (1, g.Here())]
BACK: list[tuple[int, g.RankMessage]] = [(0, g.Retreat(1))]
AGAIN: list[tuple[int, g.RankMessage]] = [*BACK, (0, g.Wants(1)), (1, g.Wants(1)), (0, g.Granted())]


@pytest.mark.parametrize(
    "late",
    [
        [*BEGUN, (0, g.Retreat(1))],
        [*BACK, (0, g.Retreat(1))],
        [*BACK, (0, g.Here())],
        [*BACK, (1, g.Granted())],
        [*BACK, (0, g.Leave(1, 5.0))],
        [*AGAIN, (0, g.Retreat(1))],
        [*AGAIN, (0, g.Retreat(2)), (0, g.Retreat(2))],
        [*AGAIN, (0, g.Retreat(2)), (1, g.Waits(1))],
        [*AGAIN, (0, g.Retreat(2)), *BEGUN, (1, g.Waits(2))],
    ],
)
def test_what_comes_too_late_is_of_no_turn_any_more(late: list[tuple[int, g.RankMessage]]) -> None:
    leader, last = leader_of_two(*late)
    assert last == []
    assert not leader.broken


def test_one_retreat_for_each_turn_and_then_a_word_of_everybody() -> None:
    assert leader_of_two(*BACK)[1] == [(rank, g.Back(1)) for rank in range(2)]
    assert leader_of_two(*AGAIN, (0, g.Retreat(2)))[1] == [(1, g.Ask(2))]
    stays = [*AGAIN, (0, g.Retreat(2)), (1, g.Waits(2))]
    assert leader_of_two(*stays)[1] == [(0, g.Stay(2))]
    next_turn = [*stays, *BEGUN, (0, g.Wants(2)), (1, g.Wants(2)), (0, g.Retreat(3))]
    assert leader_of_two(*next_turn)[1] == [(rank, g.Back(3)) for rank in range(2)]


def test_who_has_gone_back_and_says_that_it_has_a_lease_ends_the_gang() -> None:
    leader, _ = leader_of_two(*BACK, (0, g.Wants(1)), (0, g.Granted()))
    assert "out of turn" in leader.broken
