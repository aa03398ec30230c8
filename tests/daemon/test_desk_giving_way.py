"""Who fetches ahead hears that somebody waits for another model, and when that is over."""

from __future__ import annotations

import pytest
from desk_bench import SWAP, Bench, FakePeer

from gpupool.daemon import protocol as p


def _ahead(bench: Bench) -> FakePeer:
    """One that copies ahead, having been granted its pages."""
    peer = bench.worker("ahead", 1, 1)
    heard = bench.tell(peer, p.Acquire(ahead=True))
    assert any(isinstance(message, p.Granted) for message in heard)
    return peer


def _ways(peer: FakePeer) -> list[p.GiveWay]:
    return [message for message in peer.take() if isinstance(message, p.GiveWay)]


@pytest.mark.parametrize("end", [p.Arrived(SWAP), p.Yielded(None), "death"])
def test_it_waits_while_another_arrives(end: p.ClientMessage | str) -> None:
    bench = Bench()
    ahead, awaited = _ahead(bench), bench.worker("awaited", 2)
    bench.tell(awaited, p.Acquire())
    assert _ways(ahead) == [p.GiveWay(True, 1)]
    bench.settle()
    assert _ways(ahead) == []  # it knows
    if isinstance(end, str):
        awaited.exited, awaited.connected = True, False
        bench.lose(awaited)
    else:
        bench.tell(awaited, end)
    assert _ways(ahead) == [p.GiveWay(False, 1)]


def test_another_that_nobody_waits_for_is_no_reason_until_somebody_does() -> None:
    bench = Bench()
    ahead, other = _ahead(bench), bench.worker("other", 1, 1)
    bench.tell(other, p.Acquire(ahead=True))
    assert _ways(ahead) == []
    bench.tell(other, p.Hurry())
    assert _ways(ahead) == [p.GiveWay(True, 1)]
    assert _ways(other) == []
    bench.tell(ahead, p.Hurry())  # now both are waited for
    assert _ways(ahead) == _ways(other) == []


def test_who_is_there_is_told_nothing() -> None:
    bench = Bench()
    ahead, awaited = _ahead(bench), bench.worker("awaited", 2)
    bench.tell(ahead, p.Arrived(SWAP))
    bench.tell(awaited, p.Acquire())
    assert _ways(ahead) == []
    assert bench.ledger()[0] == 1


def test_the_next_lease_begins_anew() -> None:
    bench = Bench()
    ahead, awaited = _ahead(bench), bench.worker("awaited", 2)
    bench.tell(awaited, p.Acquire())
    bench.tell(ahead, p.Yielded(None))
    ahead.take()
    bench.say(ahead, p.Acquire(ahead=True))
    assert _ways(ahead) == [p.GiveWay(True, 2)]
