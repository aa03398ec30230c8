"""How a worker obeys a revoke while its steps may last."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec

from gpupool.daemon import protocol as p
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
    """Its step is open for as long as the test says, by what it was asked to wait."""

    used_s = 0.0

    def __init__(self, *answers: Callable[[], bool]) -> None:
        self._answers = list(answers)
        self.limits_s: queue.SimpleQueue[float] = queue.SimpleQueue()

    def give_up(self, timeout_s: float, *_: object) -> bool:
        answer = self._answers.pop(0)
        self.limits_s.put(timeout_s)
        return answer()


def _late() -> bool:
    raise LeaseTimeoutError("a step is open")


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

    def late_as_one_begins() -> bool:
        begun.__enter__()
        return _late()

    holder = Holder(late_as_one_begins, lambda: True)
    with _obeying(holder, link, lasting) as obeying:
        obeying.order(p.Revoke(30.0))
        assert [holder.limits_s.get(timeout=60.0) for _ in range(2)] == [30.0, 90.0]
    assert link.said() == [p.Lasting(90.0)]


def test_what_takes_longer_than_it_said_is_told_of() -> None:
    link = FakeLink()
    lasting = _lasting(link)
    holder = Holder(_late)
    with lasting.steps(90.0), _obeying(holder, link, lasting) as obeying:
        obeying.order(p.Revoke(30.0))
        assert holder.limits_s.get(timeout=60.0) == 90.0
        assert link.sent.get(timeout=60.0) == p.Lasting(90.0)
        assert link.sent.get(timeout=60.0) == p.Kept("a step is open")


def test_way_is_given_in_the_lease_that_it_was_said_of() -> None:
    link = FakeLink()
    with _obeying(Holder(), link, _lasting(link)) as obeying:
        assert not obeying.gives_way(0)
        obeying.wish(p.GiveWay(True, 3))
        assert [obeying.gives_way(lease) for lease in (2, 3, 4)] == [False, True, False]
        obeying.wish(p.GiveWay(False, 3))
        assert not obeying.gives_way(3)
