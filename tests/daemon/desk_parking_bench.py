"""A desk whose host memory has no room for all images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from desk_bench import Bench, FakePeer

from gpupool.daemon import protocol as p
from gpupool.host_budget.place import ParkingPlace

PAGE = 4096
BUDGET = 10 * PAGE


def bench_of(limit_bytes: int | None = None, **arguments: Any) -> Bench:
    place = ParkingPlace(Path("/parked"), limit_bytes)
    return Bench(host_budget_bytes=BUDGET, parking=place, **arguments)


def loaded(bench: Bench, name: str, pages: int = 4) -> FakePeer:
    """A model that is out, with an image of so many pages of the system."""
    peer = FakePeer()
    (welcome,) = bench.tell(peer, p.Hello(p.PROTOCOL_VERSION, name))
    assert welcome.parking == "/parked"
    (granted,) = bench.tell(peer, p.HostMemories([pages * PAGE]))
    assert isinstance(granted, p.HostGranted)
    bench.tell(peer, p.Declare(2, 0, 0), p.Parkable(pages * PAGE))
    bench.now_s += 1.0
    return peer


def newcomer(bench: Bench, pages: int, name: str = "new", **asks: bool) -> FakePeer:
    """One that asks for so much."""
    peer = FakePeer()
    bench.tell(peer, p.Hello(p.PROTOCOL_VERSION, name))
    bench.say(peer, p.HostMemories([pages * PAGE], **asks))
    return peer


def parks(bench: Bench, peer: FakePeer, pages: int = 4) -> None:
    bench.say(peer, p.HostMemoryUnused(pages * PAGE), p.Parked(pages * PAGE, pages * PAGE))


def asked(*peers: FakePeer) -> list[bool]:
    """Whether each was asked to park since the last time."""
    return [any(isinstance(m, p.Park) for m in peer.take()) for peer in peers]


def states(bench: Bench) -> dict[str, tuple[str, int]]:
    return {m.name: (m.state, m.parked_bytes // PAGE) for m in bench.status().models}
