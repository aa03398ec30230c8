"""Warm pages at the desk: messages that cross, answers that stay out, and who comes first."""

from __future__ import annotations

import pytest
from desk_bench import OUT_OF_MEMORY, PAGE_BYTES, PAGES, REVOKE_S, Bench, FakePeer

from gpupool.daemon import protocol as p
from gpupool.errors import ProtocolError


def states(bench: Bench) -> dict[str, tuple[str, int]]:
    return {m.name: (m.state, m.held_bytes // PAGE_BYTES) for m in bench.status().models}


def kept(bench: Bench, name: str, pages: int, keeps: int) -> tuple[FakePeer, list[int]]:
    """A model that is out and has kept pages of its own accord."""
    peer = bench.worker(name, pages, pages)
    (granted,) = bench.tell(peer, p.Acquire())
    gone, stay = granted.pages[keeps:], granted.pages[:keeps]
    bench.tell(peer, p.Release(gone, leaving=True), p.Yielded(None, keeps))
    return peer, stay


def test_a_grant_of_no_pages_is_told() -> None:
    """It had them all: a resize that crossed the revoke had given up what the other needed."""
    bench = Bench()
    a, b = bench.worker("a", PAGES, PAGES), bench.worker("b", 1)
    (granted,) = bench.tell(a, p.Acquire())
    bench.tell(b, p.Acquire())
    assert a.take() == [p.Revoke(REVOKE_S, 3, lease=1)]
    bench.tell(a, p.Release(granted.pages[3:]))
    bench.tell(a, p.Yielded(None, 3), p.Declare(3, 0, 0, 3))
    a.take()
    assert bench.tell(a, p.Acquire(early=True)) == [p.Granted([], [], True)]
    assert states(bench) == {"a": ("resident", 3), "b": ("resident", 1)}


@pytest.mark.parametrize("nth", [1, 2])
def test_early_pages_that_cannot_be_had_leave_what_is_warm(nth: int) -> None:
    """A page is made and exported before it is told of; it is not asked for what it has."""
    bench = Bench(pages=6)
    warm, stay = kept(bench, "warm", 4, 2)
    leaves = bench.worker("leaves", 3)
    bench.tell(leaves, p.Acquire())  # on pages that the first has seen, and one more
    bench.faults.arm(nth, OUT_OF_MEMORY)
    (refused,) = bench.tell(warm, p.Acquire(early=True))
    assert bench.faults.injected == 1
    bench.faults.disarm()
    assert refused.kind == "driver"
    assert states(bench)["warm"] == ("out", 2)
    assert sorted(bench.pages.owned(bench.key_of("warm"))) == sorted(stay)
    bench.tell(leaves, p.Yielded(None))
    bench.now_s = 2 * REVOKE_S
    bench.settle()
    assert warm.kills == 0
    (granted,) = bench.tell(warm, p.Acquire(early=True))
    assert (len(granted.pages), granted.last) == (2, True)


def test_a_hurry_that_comes_first_counts() -> None:
    bench = Bench()
    busy, late = bench.worker("busy", PAGES), bench.worker("late", 1)
    bench.tell(busy, p.Acquire(), p.Idle(False))
    bench.tell(late, p.Hurry(), p.Acquire(ahead=True))
    assert busy.take() == [p.Revoke(REVOKE_S, lease=1)]


def test_what_comes_for_an_extension_is_nobody_elses() -> None:
    bench = Bench(pages=6)
    (x, of_x), (y, of_y) = kept(bench, "x", 2, 1), kept(bench, "y", 2, 1)
    grows, first = bench.worker("grows", 4), bench.worker("first", 2, 2)
    bench.tell(grows, p.Acquire(), p.Idle(False))
    bench.arbiter._turn_s = 1e6
    assert bench.tell(grows, p.Extend(2)) == []
    assert x.take()[-1] == y.take()[-1] == p.Cool(REVOKE_S, 1)
    assert bench.tell(first, p.Acquire(early=True)) == []
    bench.tell(x, p.Release(of_x, leaving=True), p.Cooled())
    assert (grows.take(), first.take()) == ([], [])
    bench.tell(y, p.Release(of_y, leaving=True), p.Cooled())
    (granted,) = grows.take()
    assert (len(granted.pages), first.take()) == (2, [])


def test_an_extension_does_not_wait_for_ever() -> None:
    bench = Bench()
    warm, _ = kept(bench, "warm", 2, 1)
    grows = bench.worker("grows", 3)
    bench.tell(grows, p.Acquire(), p.Idle(False))
    assert bench.tell(grows, p.Extend(1)) == []
    assert bench.wake_at_s is not None and bench.wake_at_s < REVOKE_S
    bench.now_s = bench.wake_at_s
    bench.settle()
    (refused,) = grows.take()
    assert refused.kind == "pool_full"
    assert (warm.kills, states(bench)["grows"]) == (0, ("resident", 3))


def test_warm_pages_that_could_not_go_are_asked_for_again() -> None:
    bench = Bench()
    warm, stay = kept(bench, "warm", 2, 1)
    last = bench.worker("last", PAGES)
    bench.tell(last, p.Acquire())
    assert warm.take()[-1] == p.Cool(REVOKE_S, 1)
    assert bench.tell(warm, p.Cooled()) == []  # the driver did not let it go
    assert bench.wake_at_s is not None
    bench.now_s = bench.wake_at_s
    bench.settle()
    assert warm.take() == [p.Cool(REVOKE_S, 1)]
    bench.tell(warm, p.Release(stay, leaving=True), p.Cooled())
    assert len(last.take()[0].pages) == PAGES
    with pytest.raises(ProtocolError, match="was not asked"):
        bench.tell(warm, p.Cooled())
