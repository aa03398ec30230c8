"""Models that begin with a part of their pages while others leave."""

from __future__ import annotations

import pytest
from desk_bench import OUT_OF_MEMORY, PAGES, REVOKE_S, Bench, FakePeer

from gpupool.daemon import protocol as p


def begun(bench: Bench, pages: int = PAGES) -> tuple[FakePeer, FakePeer, list[int]]:
    """``a`` leaves, of whose pages three went ahead; ``b`` has begun with three."""
    a, b = bench.worker("a", pages), bench.worker("b", pages, 3)
    (granted,) = bench.tell(a, p.Acquire())
    assert bench.tell(b, p.Acquire(early=True)) == []
    assert isinstance(a.take()[0], p.Revoke)
    bench.tell(a, p.Release(granted.pages[:3], leaving=True))
    (early,) = b.take()
    assert (sorted(early.pages), early.last) == (sorted(granted.pages[:3]), False)
    assert states(bench) == {"a": ("leaving", pages - 3), "b": ("waiting", 3)}
    return a, b, early.pages


def states(bench: Bench) -> dict[str, tuple[str, int]]:
    page_bytes = bench.pages.page_bytes
    return {m.name: (m.state, m.held_bytes // page_bytes) for m in bench.status().models}


def test_the_rest_comes_when_the_other_has_left() -> None:
    bench = Bench()
    a, b, early = begun(bench)
    bench.tell(a, p.Yielded(None))
    (rest,) = b.take()
    assert (len(rest.pages), rest.last) == (1, True)
    assert not set(rest.pages) & set(early)
    assert states(bench) == {"a": ("out", 0), "b": ("resident", PAGES)}
    assert bench.tell(b, p.Yielded(None)) == []
    assert bench.ledger() == (PAGES, 0, 0)


def test_a_model_that_gives_up_hands_back_what_it_began_with() -> None:
    bench = Bench()
    a, b, _ = begun(bench)
    assert bench.tell(b, p.Cancel()) == [p.Ok()]
    assert states(bench) == {"a": ("leaving", 1), "b": ("out", 0)}
    assert bench.wake_at_s == REVOKE_S  # of the one that leaves
    bench.tell(a, p.Yielded(None))
    assert bench.wake_at_s is None


def test_what_is_mapped_still_comes_back_with_the_yield() -> None:
    bench = Bench()
    a, b, _ = begun(bench)
    bench.now_s = 5.0
    assert bench.tell(b, p.Cancel(mapped=True)) == [p.Ok(), p.Revoke(REVOKE_S, lease=1)]
    bench.tell(a, p.Yielded(None))
    assert states(bench) == {"a": ("out", 0), "b": ("leaving", 3)}
    assert bench.wake_at_s == 5.0 + REVOKE_S
    bench.tell(b, p.Yielded(None))
    assert bench.ledger() == (PAGES, 0, 0)
    (granted,) = bench.tell(b, p.Acquire(early=True))
    assert granted.last


def test_who_does_not_hand_it_back_is_killed() -> None:
    bench = Bench()
    _, b, _ = begun(bench)
    bench.tell(b, p.Cancel(mapped=True))
    bench.now_s = REVOKE_S
    bench.settle()
    assert b.kills == 1


def test_a_cancel_that_crosses_the_grant_is_not_answered() -> None:
    bench = Bench()
    a, b, _ = begun(bench)
    bench.tell(a, p.Yielded(None))
    assert len(bench.tell(b, p.Cancel())) == 1  # the grant
    assert states(bench)["b"] == ("resident", PAGES)


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_rest_that_the_device_refuses_is_told_and_all_comes_back(nth: int) -> None:
    """One page is made anew and six are exported."""
    bench = Bench(pages=8)
    a, b = bench.worker("a", 5), bench.worker("b", 8, 2)
    bench.tell(a, p.Acquire())
    (early,) = bench.tell(b, p.Acquire(early=True))
    assert (len(early.pages), early.last) == (2, False)
    bench.faults.arm(nth, OUT_OF_MEMORY)
    bench.now_s = 3.0
    bench.tell(a, p.Yielded(None))
    assert bench.faults.injected == 1
    bench.faults.disarm()
    refused, revoke = b.take()
    assert (refused.kind, refused.status) == ("driver", OUT_OF_MEMORY)
    assert revoke == p.Revoke(REVOKE_S, lease=1)
    assert states(bench) == {"a": ("out", 0), "b": ("leaving", 2)}
    assert bench.wake_at_s == 3.0 + REVOKE_S
    bench.tell(b, p.Yielded(None))
    assert bench.ledger() == (8, 0, 0)
    (granted,) = bench.tell(b, p.Acquire(early=True))
    assert (len(granted.pages), granted.last) == (8, True)


def test_a_part_that_the_device_refuses_leaves_the_model_out() -> None:
    for nth in (1, 2, 3, 4, 5, 6):  # three pages made, then three exported
        bench = Bench(pages=PAGES + 3)
        a, b = bench.worker("a", PAGES), bench.worker("b", PAGES + 2, 3)
        bench.tell(a, p.Acquire())
        bench.faults.arm(nth, OUT_OF_MEMORY)
        (refused,) = bench.tell(b, p.Acquire(early=True))
        bench.faults.disarm()
        assert (refused.kind, refused.status) == ("driver", OUT_OF_MEMORY)
        assert states(bench)["b"] == ("out", 0)
        bench.tell(a, p.Yielded(None))
        assert bench.ledger() == (PAGES + 3, 0, 0)


def test_a_process_that_ends_is_waited_for_with_what_it_began_with() -> None:
    bench = Bench()
    a, b, _ = begun(bench)
    b.connected = False
    bench.lose(b)
    assert b.kills == 1
    assert bench.ledger() == (0, 1, 3)
    bench.tell(a, p.Yielded(None))
    c = bench.worker("c", PAGES)
    assert bench.tell(c, p.Acquire()) == []
    b.exited = True
    assert bench.lose(b)
    (granted,) = c.take()
    assert len(granted.pages) == PAGES
