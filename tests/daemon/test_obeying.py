"""How a worker obeys a revoke while its steps may last."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpupool.daemon import protocol as p
from gpupool.daemon.due import Due
from gpupool.daemon.lasting import Lasting
from gpupool.daemon.link import Link
from gpupool.daemon.obeying import Obeying
from gpupool.errors import DaemonUnavailableError, LeaseTimeoutError


class FakeLink:
    """Keeps what is sent; ``gone`` is a daemon that does not hear it."""

    def __init__(self) -> None:
        self.sent: queue.SimpleQueue[msgspec.Struct] = queue.SimpleQueue()
        self.gone = False

    def send(self, message: msgspec.Struct) -> None:
        if self.gone:
            raise DaemonUnavailableError("gone")
        self.sent.put(message)

    def said(self) -> list[msgspec.Struct]:
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]


class Holder:
    """Its step is open for as long as the test says."""

    used_s = 0.0

    def __init__(self) -> None:
        self.leaves: queue.SimpleQueue[bool | Exception] = queue.SimpleQueue()
        self.asked: queue.SimpleQueue[tuple[float, Callable[[], float]]] = queue.SimpleQueue()

    def give_up(
        self, timeout_s: float, stale: object, keep: int, park: None, longer_s: Callable[[], float]
    ) -> bool:
        self.asked.put((timeout_s, longer_s))
        leaves = self.leaves.get(timeout=60.0)
        if isinstance(leaves, Exception):
            raise leaves
        return leaves


@contextmanager
def _obeying(holder: Holder, link: FakeLink, lasting: Lasting) -> Iterator[Obeying]:
    obeying = Obeying()
    obeying.holder = cast(Any, holder)
    obeying.start(cast(Link, link), lambda _: False, lasting)
    try:
        yield obeying
    finally:
        obeying.stop()


def _lasting(link: FakeLink) -> Lasting:
    return Lasting(cast(Link, link))


def test_the_daemon_hears_of_the_longest_alone() -> None:
    link = FakeLink()
    lasting = _lasting(link)
    with lasting.steps(60.0):
        with lasting.steps(10.0), lasting.steps(60.0):
            pass
        with lasting.steps(90.0):
            assert lasting.step_s == 90.0
    assert link.said() == [p.Lasting(s) for s in (60.0, 90.0, 60.0, 0.0)]
    link.gone = True
    with lasting.steps(60.0):  # who has its memory goes on
        assert lasting.step_s == 60.0
    assert lasting.step_s == 0.0


def test_a_step_that_began_meanwhile_is_waited_for() -> None:
    link = FakeLink()
    lasting = _lasting(link)
    begun = lasting.steps(90.0)
    holder = Holder()
    with _obeying(holder, link, lasting) as obeying:
        obeying.order(p.Revoke(30.0))
        timeout_s, longer_s = holder.asked.get(timeout=60.0)
        assert timeout_s == 30.0
        assert longer_s() == 0.0
        begun.__enter__()
        assert 60.0 <= longer_s() < 90.0
        begun.__exit__(None, None, None)
        assert 0.0 <= longer_s() < 30.0
        holder.leaves.put(True)
    assert link.said() == [p.Lasting(90.0), p.Lasting(0.0)]


def test_what_takes_longer_than_it_said_is_told_of() -> None:
    link = FakeLink()
    lasting = _lasting(link)
    holder = Holder()
    with lasting.steps(90.0), _obeying(holder, link, lasting) as obeying:
        obeying.order(p.Revoke(30.0))
        timeout_s, longer_s = holder.asked.get(timeout=60.0)
        assert (timeout_s, longer_s()) == (30.0, pytest.approx(60.0))
        assert link.sent.get(timeout=60.0) == p.Lasting(90.0)
        holder.leaves.put(LeaseTimeoutError("a step is open"))
        assert link.sent.get(timeout=60.0) == p.Kept("a step is open")


@given(
    said=st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0, 30, 90, 200])), max_size=8),
    ordered=st.integers(0, 100),
    latency=st.integers(0, 3),
)
def test_who_is_told_and_who_tells_reckon_alike(
    said: list[tuple[int, int]], ordered: int, latency: int
) -> None:
    """Whatever crosses: the daemon and its model differ by no more than messages take.

    But for a step that begins just when its order is due, which either of them may see first.
    """
    others = 40
    times = list(itertools.accumulate(later for later, _ in said))
    changes = [(at, step) for at, (_, step) in zip(times, said, strict=True)]
    assume(all(abs(at - ordered - others) > latency for at in times))

    def due(from_s: int, heard_after_s: int) -> Due:
        before = [step for at, step in changes if at + heard_after_s <= from_s]
        found = Due(from_s, others, before[-1] if before else 0)
        for at, step in changes[len(before) :]:
            if at + heard_after_s < found.at_s:
                found.lasts(step, at + heard_after_s)
        return found

    daemons, models = due(ordered, latency), due(ordered + latency, 0)
    assert abs(daemons.at_s - models.at_s) <= latency
    longest = max([step for _, step in changes], default=0)
    assert ordered + others <= daemons.at_s <= ordered + others + max(others, longest)


def test_way_is_given_in_the_lease_that_it_was_said_of() -> None:
    link = FakeLink()
    with _obeying(Holder(), link, _lasting(link)) as obeying:
        assert not obeying.gives_way(0)
        obeying.wish(p.GiveWay(True, 3))
        assert [obeying.gives_way(lease) for lease in (2, 3, 4)] == [False, True, False]
        obeying.wish(p.GiveWay(False, 3))
        assert not obeying.gives_way(3)
