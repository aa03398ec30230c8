"""Steps that take longer than those of others: how long a revoke waits for them."""

from __future__ import annotations

import pytest
from desk_bench import REVOKE_S, SWAP, Bench, FakePeer
from desk_parking_bench import bench_of, loaded, newcomer, parks
from hypothesis import given
from hypothesis import strategies as st

from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.errors import ProtocolError

LONG_S = 4 * REVOKE_S


def _wanted(bench: Bench, *told: p.ClientMessage) -> FakePeer:
    """One that said this, came in, and is wanted out since the bench's 0 s."""
    holder, other = bench.worker("holder", 3), bench.worker("other", 3)
    bench.tell(holder, *told, p.Acquire(), p.Arrived(SWAP))
    bench.tell(other, p.Acquire())
    return holder


def _killed_at_s(bench: Bench, peer: FakePeer) -> float:
    while not peer.kills:
        assert bench.wake_at_s is not None
        bench.now_s = bench.wake_at_s
        bench.settle()
    return bench.now_s


def test_a_revoke_waits_for_what_was_said_before() -> None:
    bench = Bench()
    holder = _wanted(bench, p.Lasting(LONG_S))
    assert holder.take() == [p.Revoke(REVOKE_S, lease=1)]  # the holder knows the rest
    assert _killed_at_s(bench, holder) == LONG_S


def test_less_than_all_have_counts_for_nothing() -> None:
    bench = Bench()
    holder = _wanted(bench, p.Lasting(REVOKE_S / 2))
    assert holder.take() == [p.Revoke(REVOKE_S, lease=1)]
    assert _killed_at_s(bench, holder) == REVOKE_S


def test_what_is_over_is_not_waited_for_any_longer() -> None:
    bench = Bench()
    holder = _wanted(bench, p.Lasting(LONG_S))
    bench.now_s = 1.0
    bench.say(holder, p.Lasting(0))
    assert _killed_at_s(bench, holder) == 1.0 + REVOKE_S


def test_it_may_cross_the_revoke_and_no_deadline_is_put_off_for_ever() -> None:
    bench = Bench()
    holder = _wanted(bench)
    for _ in range(5):
        bench.say(holder, p.Lasting(LONG_S))
        bench.now_s += 1.0
        bench.say(holder, p.Lasting(0))
    assert _killed_at_s(bench, holder) == 5.0 + REVOKE_S
    bench = Bench()
    holder = _wanted(bench, p.Lasting(LONG_S))
    for bench.now_s in (REVOKE_S, REVOKE_S + 1.0, REVOKE_S + 2.0):
        bench.say(holder, p.Lasting(0))
        bench.say(holder, p.Lasting(LONG_S))
    assert _killed_at_s(bench, holder) == 2 * REVOKE_S + 1.0
    bench = Bench()
    holder = _wanted(bench)
    bench.now_s = 10.0
    bench.say(holder, p.Lasting(LONG_S))
    assert _killed_at_s(bench, holder) == 10.0 + LONG_S


def test_the_next_revoke_has_what_holds_then() -> None:
    bench = Bench()
    holder = _wanted(bench, p.Lasting(LONG_S))
    bench.tell(holder, p.Yielded(SWAP), p.Lasting(0), p.Acquire())
    (other,) = (w.peer for w in bench.desk._workers.values() if w.name == "other")
    bench.tell(other, p.Arrived(SWAP), p.Yielded(SWAP))  # type: ignore[arg-type]
    bench.tell(holder, p.Arrived(SWAP))
    bench.tell(other, p.Acquire())  # type: ignore[arg-type]
    assert p.Revoke(REVOKE_S, lease=2) in holder.take()


def test_warm_pages_wait_for_no_step() -> None:
    bench = Bench()
    warm, other = bench.worker("warm", 3, 3), bench.worker("other", 2)
    bench.tell(warm, p.Lasting(LONG_S), p.Acquire(), p.Arrived(SWAP))
    bench.tell(warm, p.Yielded(SWAP, keeps=3))
    bench.tell(other, p.Acquire())
    (cool,) = warm.take()
    assert isinstance(cool, p.Cool) and cool.deadline_s == REVOKE_S


@given(
    said=st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, REVOKE_S, LONG_S]), st.floats(0.0, 20.0)),
        max_size=12,
    )
)
def test_whatever_is_said_the_end_comes_between_two_limits(
    said: list[tuple[float, float]],
) -> None:
    bench = Bench()
    holder = _wanted(bench)
    for step_s, later_s in said:
        if holder.kills:
            break
        bench.say(holder, p.Lasting(step_s))
        bench.now_s += later_s
        bench.settle()
    ends_s = _killed_at_s(bench, holder)
    # Nothing that begins after it was due puts it off; the test looks at most so much later.
    assert REVOKE_S <= ends_s <= REVOKE_S + LONG_S + 20.0


@pytest.mark.parametrize("step_s", [-1.0, float("nan"), 1e10])
def test_times_that_are_none(step_s: float) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_client(wire.encode(p.Lasting(step_s)))


def test_it_is_a_workers_to_say() -> None:
    bench = Bench()
    with pytest.raises(ProtocolError, match="first message"):
        bench.tell(FakePeer(), p.Lasting(1.0))
    assert bench.ledger() == (4, 0, 0)


def test_who_leaves_already_has_no_more_time_for_a_page_that_is_wrong() -> None:
    bench = Bench()
    holder = _wanted(bench)
    worker = bench.desk._workers[bench.key_of("holder")]
    for bench.now_s in (10.0, 20.0):
        worker.revoke(REVOKE_S, bench.now_s, distrusted="a page is wrong")
        bench.say(holder, p.Lasting(0))
    bench.settle()
    assert _killed_at_s(bench, holder) == REVOKE_S


def test_who_waits_for_images_of_one_whose_step_lasts_is_not_refused_before_it_left() -> None:
    bench = bench_of(turn_s=0.0)
    holder = loaded(bench, "holder", 8)
    bench.tell(holder, p.Lasting(LONG_S), p.Acquire(), p.Arrived(SWAP))
    new = newcomer(bench, 5)
    (revoke,) = holder.take()
    assert isinstance(revoke, p.Revoke) and revoke.deadline_s == REVOKE_S
    assert revoke.park_s is not None
    while bench.now_s < LONG_S - 1.0:
        bench.now_s += 1.0
        bench.settle()
    assert new.take() == [] and holder.kills == 0
    bench.tell(holder, p.Yielded(SWAP))
    parks(bench, holder, 8)
    assert new.take() == [p.HostGranted(True)]
