"""Host memory at the desk: questions that end, and answers that do not come."""

from __future__ import annotations

import pytest
from desk_bench import REVOKE_S, SWAP, Bench, FakePeer
from desk_parking_bench import BUDGET, PAGE, asked, bench_of, loaded, newcomer, parks

from gpupool.daemon import protocol as p
from gpupool.errors import ProtocolError


def test_what_can_never_be_is_refused_at_once() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 3)
    bench.tell(newcomer(bench, 1, "b"), p.Declare(1, 0, 0), p.Parkable(0))
    for pages in (11, 10):
        new = newcomer(bench, pages, f"new {pages}")
        (refused,) = new.take()
        assert ("no other model" in refused.message) is (pages == 10)
    assert asked(a) == [False]
    bench = Bench(host_budget_bytes=BUDGET)
    peer = FakePeer()
    (welcome,) = bench.tell(peer, p.Hello(p.PROTOCOL_VERSION, "a"))
    assert welcome.parking == ""
    bench.tell(peer, p.HostMemories([4 * PAGE]), p.Declare(1, 0, 0), p.Parkable(4 * PAGE))
    (refused,) = newcomer(bench, 7).take()
    assert refused.message.endswith(
        f"and {6 * PAGE} of the host budget are free: raise the host budget"
    )
    assert peer.take() == []


@pytest.mark.parametrize("end", ["killed", "goodbye"])
def test_who_is_asked_and_ends_makes_room_too(end: str) -> None:
    bench = bench_of()
    a, new = loaded(bench, "a", 8), FakePeer()
    new = newcomer(bench, 5)
    assert asked(a) == [True]
    if end == "goodbye":
        bench.tell(a, p.HostMemoryUnused(8 * PAGE), p.Goodbye())
    else:
        a.exited = True
        assert bench.lose(a)
    assert new.take() == [p.HostGranted(True)]
    assert bench.status().host_bytes == 5 * PAGE


def test_who_waits_and_ends_is_forgotten() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    first, second = newcomer(bench, 9, "first"), newcomer(bench, 2, "second")
    first.exited = True
    assert bench.lose(first)
    assert second.take() == [p.HostGranted(True)]
    parks(bench, a, 8)
    assert bench.status().host_bytes == 2 * PAGE


def test_taken_back_or_granted_there_is_one_answer() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    new = newcomer(bench, 5)
    new.take()
    assert bench.tell(new, p.Cancel(mapped=True)) == [p.Ok()]
    parks(bench, a, 8)
    assert new.take() == []
    assert bench.tell(new, p.HostMemories([PAGE]), p.Cancel(mapped=True)) == [p.HostGranted(True)]


def test_who_has_pages_is_answered_at_once() -> None:
    bench = bench_of()
    a, b = loaded(bench, "a"), loaded(bench, "b")
    bench.tell(a, p.Acquire())
    assert bench.tell(a, p.HostMemories([PAGE, PAGE]))[-1] == p.HostGranted(True)
    assert bench.tell(a, p.HostMemories([PAGE]))[0].kind == "refused"
    assert asked(b) == [False]
    assert bench.tell(a, p.HostMemory(PAGE))[0].kind == "refused"
    assert asked(b) == [True]  # for the next time
    parks(bench, b)
    assert bench.tell(a, p.HostMemory(PAGE)) == [p.HostMemory(PAGE)]


def test_a_model_that_does_not_answer_is_not_counted_on() -> None:
    bench = bench_of()
    a, b = loaded(bench, "a"), loaded(bench, "b")
    new = newcomer(bench, 5)
    assert asked(a, b) == [True, False]
    assert bench.wake_at_s is not None and bench.wake_at_s > bench.now_s + REVOKE_S
    bench.now_s = bench.wake_at_s
    bench.settle()
    assert asked(a, b) == [False, True]
    parks(bench, a)  # after all
    assert new.take() == [p.HostGranted(True)]
    assert (a.kills, b.kills) == (0, 0)
    parks(bench, b)
    assert bench.status().host_bytes == 5 * PAGE


def test_files_have_a_limit() -> None:
    bench = bench_of(limit_bytes=5 * PAGE)
    a, b = loaded(bench, "a"), loaded(bench, "b")
    new = newcomer(bench, 5)
    assert asked(a, b) == [True, False]
    parks(bench, a)
    assert new.take() == [p.HostGranted(False)]  # whose files would not all have room
    bench.tell(new, p.Goodbye())
    new.exited = True
    bench.lose(new)
    assert bench.tell(a, p.HostMemories([4 * PAGE], returns=True)) == [p.HostGranted(False)]
    bench.tell(a, p.Unparked(4 * PAGE, 4 * PAGE))  # it kept it all the same
    newcomer(bench, 6, "other")
    assert asked(a, b) == [True, False]
    other = newcomer(bench, 9, "more")
    assert other.take() == []
    parks(bench, a)
    assert other.take()[-1].kind == "refused"  # for "b" has no room


def test_files_of_models_that_grow_have_the_same_limit() -> None:
    bench = bench_of(limit_bytes=5 * PAGE)
    a, b = loaded(bench, "a"), loaded(bench, "b", 3)
    bench.tell(a, p.HostMemory(2 * PAGE), p.Parkable(6 * PAGE))
    new = newcomer(bench, 2)
    (park,) = b.take()
    assert (a.take(), park.file_bytes) == ([], 3 * PAGE)
    bench.tell(b, p.Parkable(6 * PAGE))  # of which it may park what it was told
    parks(bench, b, 3)
    assert new.take() == [p.HostGranted(False)]
    bench.tell(new, p.Parkable(0))
    last = newcomer(bench, 5, "last")
    assert a.take() == []
    assert [message.kind for message in last.take()] == ["refused"]
    bench.tell(a, p.Parkable(2 * PAGE), p.Acquire(), p.Arrived(SWAP))
    newcomer(bench, 3, "small")
    revoke = a.take()[-1]
    assert (revoke.park_s is None, revoke.file_bytes) == (False, 2 * PAGE)


def test_messages_out_of_turn_end_the_connection() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    with pytest.raises(ProtocolError, match="when it is asked"):
        bench.tell(a, p.Parked(0, 0))
    with pytest.raises(ProtocolError, match="come back once"):
        bench.tell(a, p.Unparked(0, 0))
    bench.tell(a, p.HostMemories([9 * PAGE]))
    assert bench.tell(a, p.HostMemories([0]))[0].kind == "refused"
    new = newcomer(bench, 3)
    with pytest.raises(ProtocolError, match="asks for more"):
        bench.tell(new, p.HostMemories([PAGE]))


@pytest.mark.parametrize("says_goodbye", [False, True])
def test_a_process_that_is_about_to_end_is_waited_for(says_goodbye: bool) -> None:
    """But not one that has taken leave and keeps what somebody looks at, nor for long."""
    bench = bench_of()
    a = loaded(bench, "a", 8)
    if says_goodbye:
        bench.say(a, p.Goodbye())
    else:
        assert not bench.lose(a)
    new = newcomer(bench, 5)
    assert [message.kind for message in new.take()] == ["refused"] * says_goodbye
    if not says_goodbye:
        assert bench.wake_at_s is not None
        bench.now_s = bench.wake_at_s
        bench.settle()
        (refused,) = new.take()
        assert "no other model can park" in refused.message
