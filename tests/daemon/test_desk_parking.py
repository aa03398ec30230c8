"""Host memory at the desk: who is asked to park, and who is not."""

from __future__ import annotations

from desk_bench import REVOKE_S, SWAP
from desk_parking_bench import PAGE, asked, bench_of, loaded, newcomer, parks, states

from gpupool.daemon import protocol as p


def test_those_that_are_out_park_in_the_order_of_their_last_use() -> None:
    bench = bench_of()
    a, b = loaded(bench, "a"), loaded(bench, "b")
    for idle in (False, True):
        bench.tell(a, p.Idle(idle))
    new = newcomer(bench, 5)
    assert asked(a, b) == [False, True]
    parks(bench, b)
    assert new.take() == [p.HostGranted(True)]
    assert states(bench) == {"a": ("out", 0), "b": ("out", 4), "new": ("starting", 0)}
    bench.tell(new, p.Declare(1, 0, 0), p.Parkable(5 * PAGE))
    b_again = bench.tell(b, p.HostMemories([3 * PAGE, PAGE], returns=True))
    assert (b_again, asked(a, new)) == ([], [True, False])
    parks(bench, a)
    assert b.take() == [p.HostGranted(True)]
    bench.tell(b, p.Unparked(4 * PAGE, 4 * PAGE, 0.5), p.Acquire())
    model = bench.status().models[1]
    assert (model.parks, model.read_backs, model.read_back_bytes) == (1, 1, 4 * PAGE)
    assert (model.read_back_s, model.parked_bytes, model.parked_file_bytes) == (0.5, 0, 4 * PAGE)


def test_nobody_overtakes_the_first_who_waits() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    large, small = newcomer(bench, 9, "large"), newcomer(bench, 1, "small")
    assert (large.take(), small.take()) == ([], [])
    parks(bench, a, 8)
    assert large.take() == small.take() == [p.HostGranted(True)]


def test_nobody_is_asked_who_is_leased_waits_or_comes_back() -> None:
    bench = bench_of(turn_s=1e6)
    a, b = loaded(bench, "a"), loaded(bench, "b")
    bench.tell(a, p.Acquire(), p.Idle(False))
    bench.tell(b, p.Acquire(), p.Idle(False))
    new = newcomer(bench, 5)
    assert asked(a, b) == [False, False]
    assert new.take() == []
    assert bench.wake_at_s is not None and bench.wake_at_s > 1e5  # as their turns end
    bench.say(b, p.Yielded(SWAP))
    assert asked(a, b) == [False, True]
    parks(bench, b)
    assert new.take() == [p.HostGranted(True)]
    bench.tell(new, p.Declare(1, 0, 0), p.Parkable(5 * PAGE))
    assert bench.tell(b, p.HostMemories([4 * PAGE], returns=True)) == []
    assert asked(a, new) == [False, True]
    parks(bench, new, 5)
    assert b.take() == [p.HostGranted(True)]  # and reads it back
    newcomer(bench, 5, "last")
    assert asked(a, b, new) == [False, False, False]


def test_idle_models_leave_and_park_at_once() -> None:
    bench = bench_of(turn_s=1e6)
    a, b = loaded(bench, "a"), loaded(bench, "b")
    bench.tell(a, p.Acquire(), p.Idle(False))
    bench.tell(b, p.Acquire())
    new = newcomer(bench, 5)
    assert a.take() == []
    (revoke,) = b.take()
    assert isinstance(revoke, p.Revoke)
    assert (revoke.keep, revoke.lease, revoke.deadline_s) == (0, 1, REVOKE_S)
    assert revoke.park_s is not None and revoke.park_s > REVOKE_S
    bench.tell(b, p.Yielded(SWAP))
    assert asked(b) == [False]  # it was
    bench.now_s += 2 * REVOKE_S
    bench.settle()
    assert b.kills == 0  # for how long a disk takes
    parks(bench, b)
    assert new.take() == [p.HostGranted(True)]


def test_a_model_that_cannot_leave_is_no_help() -> None:
    bench = bench_of(turn_s=1e6)
    a, b = loaded(bench, "a"), loaded(bench, "b")
    for peer in (a, b):
        bench.tell(peer, p.Acquire())
    newcomer(bench, 5)
    (revoke,) = a.take()
    assert isinstance(revoke, p.Revoke)
    bench.tell(a, p.Kept("its store is full", stays=True), p.Parked(0, 0))
    assert isinstance(b.take()[0], p.Revoke)
    bench.tell(b, p.Kept("its store is full", stays=True), p.Parked(0, 0))
    assert (a.take(), b.take()) == ([], [])
    assert bench.wake_at_s == bench.now_s + 1.0
    bench.now_s += 1.0
    bench.settle()
    assert isinstance(a.take()[0], p.Revoke)


def test_a_wish_that_crosses_an_acquire_is_wished_again_of_who_left() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    new = newcomer(bench, 5)
    assert asked(a) == [True]
    (granted,) = bench.tell(a, p.Acquire())
    assert isinstance(granted, p.Granted)
    (revoke,) = bench.tell(a, p.Parked(0, 0))
    assert isinstance(revoke, p.Revoke) and revoke.park_s is not None
    bench.tell(a, p.Yielded(SWAP))
    parks(bench, a, 8)
    assert new.take() == [p.HostGranted(True)]


def test_a_model_that_is_in_use_without_its_pages_is_asked_again() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    new = newcomer(bench, 5)
    assert asked(a) == [True]
    bench.tell(a, p.Parked(0, 0))
    assert asked(a) == [False]
    assert bench.wake_at_s == bench.now_s + 1.0
    assert new.take() == []
    (granted,) = bench.tell(a, p.Acquire())
    assert isinstance(granted, p.Granted)
    assert bench.wake_at_s is None  # it is asked to leave
    bench.tell(a, p.Yielded(SWAP))
    parks(bench, a, 8)
    assert new.take() == [p.HostGranted(True)]


def test_who_cannot_park_is_followed_by_the_next_and_then_by_a_refusal() -> None:
    bench = bench_of()
    a, b = loaded(bench, "a"), loaded(bench, "b")
    new = newcomer(bench, 5)
    assert asked(a, b) == [True, False]
    bench.tell(a, p.Parked(0, 0, "no space"))
    assert asked(a, b) == [False, True]
    bench.tell(b, p.Parked(0, 0, "no space either"))
    (refused,) = new.take()
    assert refused.kind == "refused"
    assert refused.message == (
        f"{5 * PAGE} bytes of host memory were asked for and {2 * PAGE} of the host budget are "
        "free, and no other model can park its images in /parked (no space): raise the host budget"
    )
    assert bench.tell(new, p.HostMemories([3 * PAGE]))[0].kind == "refused"
    bench.now_s += 10.0
    assert bench.tell(new, p.HostMemories([3 * PAGE])) == []
    assert asked(a, b) == [True, False]


def test_who_asks_ahead_comes_last_and_has_no_busy_model_leave() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    bench.tell(a, p.Acquire(), p.Idle(False))
    ahead = newcomer(bench, 3, "ahead", ahead=True, returns=True)
    assert a.take() == []
    other = newcomer(bench, 2, "other")
    assert other.take()[0] == p.HostGranted(True)
    bench.tell(other, p.Parked(0, 0), p.Declare(1, 0, 0))
    assert ahead.take() == []
    bench.tell(ahead, p.Hurry())
    assert isinstance(a.take()[0], p.Revoke)
    bench.tell(a, p.Yielded(SWAP))
    parks(bench, a, 8)
    assert ahead.take() == [p.HostGranted(True)]


def test_a_region_that_is_asked_for_meanwhile_leaves_what_comes_back_alone() -> None:
    bench = bench_of()
    a, b = loaded(bench, "a"), loaded(bench, "b")
    new = newcomer(bench, 5)
    assert asked(a, b) == [True, False]
    parks(bench, a)
    new.take()
    bench.tell(new, p.HostMemoryUnused(5 * PAGE))
    assert bench.tell(a, p.HostMemories([4 * PAGE], returns=True)) == [p.HostGranted(True)]
    for pages in (1, 3):  # while it is read back: one is granted, and one taken back
        got = bench.tell(a, p.HostMemories([pages * PAGE]))
        assert got == ([p.HostGranted(True)] if pages == 1 else [])
    assert bench.tell(a, p.Cancel(mapped=True)) == [p.Ok()]
    bench.tell(a, p.Unparked(4 * PAGE, 4 * PAGE, 0.5))
    assert states(bench)["a"] == ("out", 0)


def test_who_waits_behind_for_parked_images_has_none_to_park() -> None:
    bench = bench_of()
    a, b = loaded(bench, "a"), loaded(bench, "b")
    new = newcomer(bench, 5)
    parks(bench, a)
    assert new.take() == [p.HostGranted(True)]
    bench.tell(new, p.Declare(1, 0, 0), p.Parkable(5 * PAGE))
    bench.tell(a, p.HostMemory(PAGE))  # of KV, say, which stays
    first = newcomer(bench, 1, "first")
    assert bench.tell(a, p.HostMemories([4 * PAGE], returns=True)) == []
    assert first.take() == []
    for peer in (b, new):
        bench.tell(peer, p.Parked(0, 0, "no space"))
    assert [message.kind for message in first.take()] == ["refused"]


def test_who_waits_for_an_image_that_is_looked_at_is_not_refused() -> None:
    bench = bench_of()
    a = loaded(bench, "a", 8)
    new = newcomer(bench, 5)
    for _ in range(3):
        assert asked(a) == [True]
        bench.tell(a, p.Parked(0, 0, "somebody looks", passes=True))
        assert (new.take(), asked(a)) == ([], [False])
        assert bench.wake_at_s == bench.now_s + 1.0
        bench.now_s += 1.0
        bench.settle()
    parks(bench, a, 8)
    assert new.take() == [p.HostGranted(True)]


def test_who_would_have_to_leave_again_is_not_asked_so_soon() -> None:
    bench = bench_of(turn_s=1e6)
    a = loaded(bench, "a", 8)
    bench.tell(a, p.Acquire())
    new = newcomer(bench, 5)
    assert isinstance(a.take()[0], p.Revoke)
    bench.tell(a, p.Yielded(SWAP), p.Parked(0, 0, "somebody looks", passes=True))
    bench.tell(a, p.Acquire(), p.Arrived(SWAP))
    assert (new.take(), bench.wake_at_s) == ([], bench.now_s + 10.0)
    bench.now_s += 10.0
    bench.settle()
    assert isinstance(a.take()[0], p.Revoke)


def test_a_model_that_has_grown_as_it_was_asked_is_asked_anew_at_once() -> None:
    bench = bench_of(turn_s=1e6)
    a = loaded(bench, "a", 6)
    bench.tell(a, p.Acquire())
    new = newcomer(bench, 5)
    assert a.take()[0].file_bytes == 6 * PAGE
    bench.tell(a, p.HostMemory(2 * PAGE), p.Parkable(8 * PAGE), p.Yielded(SWAP))
    (park,) = bench.tell(a, p.Parked(0, 0, "it has grown", passes=True))
    assert isinstance(park, p.Park) and park.file_bytes == 8 * PAGE
    parks(bench, a, 8)
    assert new.take() == [p.HostGranted(True)]


def test_a_model_that_loads_makes_room_later_unless_it_waits_for_more() -> None:
    bench = bench_of()
    loading = newcomer(bench, 6, "loading")
    assert loading.take() == [p.HostGranted(True)]
    new = newcomer(bench, 5)
    assert (new.take(), asked(loading)) == ([], [True])
    assert bench.tell(loading, p.Parked(0, 0, "not filled yet", passes=True)) == []
    assert new.take() == []
    # What it asks for may be what it fills, of which it gets none behind the other.
    assert bench.tell(loading, p.HostMemories([2 * PAGE])) == [p.HostGranted(True)]
    assert [message.kind for message in new.take()] == ["refused"]
