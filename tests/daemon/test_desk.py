"""The desk and the arbiter without sockets: time, processes and failures as the test wants them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from desk_bench import OUT_OF_MEMORY, REVOKE_S, SWAP, Bench, FakePeer

from gpupool.daemon import protocol as p


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_pages_stay_fenced_until_the_process_has_exited_and_its_forks_have() -> None:
    bench = Bench()
    mortal, other = bench.worker("mortal", 3), bench.worker("other", 2)
    assert isinstance(bench.tell(mortal, p.Acquire())[0], p.Granted)
    assert bench.tell(other, p.Acquire()) == []
    assert isinstance(mortal.take()[0], p.Revoke)
    for _ in range(3):  # hung up: killed once, and then nothing but its end helps
        assert not bench.lose(mortal)
        assert mortal.kills == 1
        assert bench.ledger() == (1, 0, 3)
        assert other.take() == []
    bench.now_s += 10 * REVOKE_S
    bench.settle()
    assert mortal.kills == 1
    mortal.exited = True  # but a fork of it still has the connection, and the pages
    assert not bench.lose(mortal)
    assert bench.ledger() == (1, 0, 3)
    mortal.connected = False
    assert bench.lose(mortal)
    assert isinstance(other.take()[0], p.Granted)
    assert bench.ledger() == (2, 2, 0)
    assert [r.message for r in bench.status().refusals] == []


def test_a_name_is_free_once_its_process_has_exited() -> None:
    bench = Bench()
    mortal = bench.worker("a", 3)
    bench.tell(mortal, p.Acquire())
    bench.lose(mortal)
    successor = FakePeer()
    assert isinstance(bench.tell(successor, p.Hello(p.PROTOCOL_VERSION, "a"))[0], p.Refused)
    mortal.exited, mortal.connected = True, False
    assert bench.lose(mortal)
    assert isinstance(bench.tell(FakePeer(), p.Hello(p.PROTOCOL_VERSION, "a"))[0], p.Welcome)


def test_a_revoke_is_obeyed_in_time_or_ends_the_process() -> None:
    bench = Bench()
    slow, other = bench.worker("slow", 3), bench.worker("other", 3)
    bench.tell(slow, p.Acquire())
    bench.tell(other, p.Acquire())
    assert bench.wake_at_s == REVOKE_S
    bench.now_s = REVOKE_S - 0.1
    assert bench.tell(slow, p.Kept("no")) == [p.Revoke(REVOKE_S, lease=1)]
    assert slow.kills == 0
    bench.tell(slow, p.Yielded(SWAP))
    assert isinstance(other.take()[0], p.Granted)
    assert bench.wake_at_s is None
    bench.tell(slow, p.Acquire())
    bench.now_s += REVOKE_S
    bench.settle()
    assert (slow.kills, other.kills) == (0, 1)
    bench.now_s += REVOKE_S
    bench.settle()
    assert other.kills == 1
    assert [r.message for r in bench.status().refusals][-1].startswith("killed")


def test_a_model_that_stays_is_neither_killed_nor_forgotten() -> None:
    bench = Bench()
    full, other = bench.worker("full", 4), bench.worker("other", 4)
    bench.tell(full, p.Acquire())
    bench.tell(other, p.Acquire())
    for _ in range(3):
        assert full.take() == [p.Revoke(REVOKE_S, lease=1)]
        assert bench.tell(full, p.Kept("its store is full", stays=True)) == []
        model = bench.status().models[0]
        assert (model.state, model.stays) == ("resident", "its store is full")
        assert bench.wake_at_s == bench.now_s + 1.0
        bench.now_s += 1.0
        bench.settle()
    assert full.kills == 0
    assert bench.status().refusals == []
    bench.tell(full, p.Yielded(SWAP))
    assert isinstance(other.take()[0], p.Granted)
    assert bench.status().models[0].stays == ""


def test_kept_without_a_revoke_crossed_a_yield() -> None:
    bench = Bench()
    model = bench.worker("a", 1)
    bench.tell(model, p.Acquire(), p.Kept("late"))
    assert bench.status().refusals == []


def test_cancel_is_answered_by_one_of_ok_granted_and_refused() -> None:
    bench = Bench()
    holder, waiting = bench.worker("holder", 4), bench.worker("waiting", 4)
    bench.tell(holder, p.Acquire())
    assert bench.tell(waiting, p.Acquire(), p.Cancel()) == [p.Ok()]
    bench.tell(waiting, p.Acquire())
    bench.tell(holder, p.Yielded(None))
    assert [type(m) for m in bench.tell(waiting, p.Cancel())] == [p.Granted]
    fresh = Bench()
    model = fresh.worker("a", 2)
    fresh.faults.arm(1, OUT_OF_MEMORY)
    (refused,) = fresh.tell(model, p.Acquire())
    assert fresh.tell(model, p.Cancel()) == []
    assert (refused.kind, refused.call, refused.status) == ("driver", "page_create", OUT_OF_MEMORY)


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_grant_that_fails_at_any_driver_call_leaves_nothing_granted(nth: int) -> None:
    """Four pages to create and four to export."""
    bench = Bench()
    fds = open_descriptors()
    model, other = bench.worker("a", 4), bench.worker("b", 4)
    bench.faults.arm(nth, OUT_OF_MEMORY)
    (refused,) = bench.tell(model, p.Acquire())
    assert refused.kind == "driver"
    assert refused.call == ("page_create" if nth <= 4 else "page_export")
    assert bench.ledger() == (4, 0, 0)
    assert bench.status().models[0].state == "out"
    (granted,) = bench.tell(model, p.Acquire())
    assert sorted(granted.pages) == sorted(granted.new) == [0, 1, 2, 3]
    bench.tell(model, p.Yielded(None))
    (granted,) = bench.tell(other, p.Acquire())
    assert len(granted.new) == 4
    assert open_descriptors() <= fds + 4  # the pages themselves


def test_when_a_grant_fails_the_next_in_line_gets_the_room() -> None:
    bench = Bench()
    holder, first, second = (bench.worker(name, 4) for name in ("holder", "first", "second"))
    bench.tell(holder, p.Acquire())
    bench.tell(first, p.Acquire())
    bench.tell(second, p.Acquire())
    bench.faults.arm(2, OUT_OF_MEMORY)
    bench.tell(holder, p.Yielded(None))
    assert [type(m) for m in first.take()] == [p.Refused]
    assert [type(m) for m in second.take()] == [p.Granted]


def test_pages_are_told_in_pieces_and_their_descriptors_once() -> None:
    bench = Bench(pages=300)
    model = bench.worker("large", 300)
    first, second = bench.tell(model, p.Acquire())
    assert [(len(m.pages), len(m.new), m.last) for m in (first, second)] == [
        (253, 253, False),
        (47, 47, True),
    ]
    bench.tell(model, p.Yielded(None))
    again = bench.tell(model, p.Acquire())
    assert [(len(m.pages), m.new) for m in again] == [(253, []), (47, [])]


def test_turns_are_fair() -> None:
    """Three models that always want all of the memory get it in turn, each for its whole turn."""
    bench = Bench(turn_s=0.2)
    models = [bench.worker(name, 4) for name in "abc"]
    for model in models:
        bench.say(model, p.Idle(False), p.Acquire())
    turns: list[tuple[int, float]] = []
    while len(turns) < 100:
        while any(model.heard for model in models):
            for number, model in enumerate(models):
                for message in model.take():
                    if isinstance(message, p.Granted):
                        turns.append((number, bench.now_s))
                    elif isinstance(message, p.Revoke):
                        bench.say(model, p.Yielded(SWAP), p.Acquire())
        assert bench.wake_at_s is not None
        bench.now_s = bench.wake_at_s
        bench.settle()
    order = [number for number, _ in turns]
    assert order == [number % 3 for number in range(len(order))]
    lengths = [b[1] - a[1] for a, b in pairwise(turns)]
    assert lengths == pytest.approx([0.2] * len(lengths))


def test_the_largest_status_fits_a_packet() -> None:
    bench = Bench()
    name = "\U0001f600" * 256
    model = bench.worker(name, 1)
    for _ in range(p.HISTORY + 1):
        bench.tell(model, p.Acquire(), p.Arrived(p.SwapFigures(0.1, 0.1, 2**53)), p.Yielded(None))
    bench.tell(model, p.Acquire())
    bench.tell(bench.worker("other", 4), p.Acquire())
    for _ in range(40):
        bench.tell(model, p.Kept("\U0001f600" * 30_000))
    status = bench.status()
    assert len(status.models[0].swap_in_s) == p.HISTORY
    assert {len(r.message.encode()) for r in status.refusals} == {p.TEXT_BYTES_MAX}
