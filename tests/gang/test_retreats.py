"""Gangs whose memory is wanted elsewhere while some of their ranks wait for their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks_bench import FOR_EVER_S, PATIENCE_S, Ranks, ranks_of

from gpupool.errors import GangBrokenError, NotBegunError
from gpupool.gang.gate import _ALL_PAGES, GangGate


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    with ranks_of(tmp_path / "gang.sock", ranks=3) as found:
        yield found


def until_there(ranks: Ranks, *which: int) -> None:
    while [n for n, memory in enumerate(ranks.memories) if memory.resident] != list(which):
        time.sleep(0.001)


def revoke(ranks: Ranks, rank: int, *, keep: int = 0, in_s: float = 0.0) -> bool:
    """As a daemon does, whose lease is stale once it was given back."""
    memory = ranks.memories[rank]
    left = len(memory.kept)
    return ranks.gates[rank].give_up(in_s, lambda: len(memory.kept) > left, keep)


def test_all_that_have_come_go_back_and_ask_anew(ranks: Ranks) -> None:
    ranks.memories[2].has_lease.clear()
    step = ranks.beside(ranks.step)
    until_there(ranks, 0, 1)
    assert revoke(ranks, 0, keep=7) is False  # it went by itself
    assert ranks.memories[0].kept == [7]
    until_there(ranks, 0, 1)  # again
    assert ranks.memories[1].kept == [_ALL_PAGES]  # since nobody asked for it
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
    both = [ranks.beside(lambda rank=rank: revoke(ranks, rank)) for rank in range(2)]  # type: ignore[misc]
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
    left = ranks.beside(lambda: revoke(ranks, 0, in_s=FOR_EVER_S))
    while ranks.gates[0]._revokes == 0:
        time.sleep(0.001)
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
    stays = ranks.beside(lambda: revoke(ranks, 0))
    while ranks._leader._leader.waits != {0, 1}:
        time.sleep(0.001)
    ranks.members[1].hang_up("test")
    ranks.members[2].say = said  # type: ignore[method-assign]
    assert stays.result(PATIENCE_S) is False
    assert isinstance(step.exception(PATIENCE_S), AssertionError)  # not all had it
    until_there(ranks)
    for gate in ranks.gates:
        with pytest.raises(GangBrokenError):
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
