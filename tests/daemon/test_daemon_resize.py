"""Leases that grow and shrink while they are held, and host memory that came to nothing."""

from __future__ import annotations

import ctypes
from typing import cast

import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon, until
from desk_bench import OUT_OF_MEMORY, Bench, FakePeer

from gpupool._core import FaultPlan, Region, open_host_driver, with_faults
from gpupool.daemon import client
from gpupool.daemon import protocol as p
from gpupool.daemon.client import DaemonSession
from gpupool.errors import DriverError, GpupoolError, PoolFullError, ProtocolError
from gpupool.model import Model
from gpupool.trace import observe


def member(daemon: Daemon, name: str, capacity_pages: int) -> tuple[Model, Region]:
    model = Model(name, DaemonSession(daemon.socket_path, name), lease_timeout_s=60.0)
    return model, model.region("kv_cache", PAGE_BYTES, capacity_bytes=capacity_pages * PAGE_BYTES)


def write(region: Region, value: int) -> None:
    ctypes.memset(region.address, value, region.bytes)
    region.mark_written([(0, region.bytes)])


def content(region: Region) -> bytes:
    return ctypes.string_at(region.address, region.bytes)


def test_a_resident_model_grows_and_shrinks(daemon: Daemon) -> None:
    model, region = member(daemon, "a", 4)
    with model.resident():
        write(region, 1)
        model.resize(region, 4 * PAGE_BYTES)
        daemon.until_ledger(free=0)
        assert content(region) == bytes([1]) * PAGE_BYTES + bytes(3 * PAGE_BYTES)
        write(region, 2)
        model.resize(region, 2 * PAGE_BYTES - 1)
        daemon.until_ledger(free=2)
    model.swap_out()
    daemon.until_ledger(free=4)
    with model.resident():
        assert content(region) == bytes([2]) * (2 * PAGE_BYTES - 1)
    assert daemon.model_status("a").footprint_bytes == 2 * PAGE_BYTES
    model.close()
    daemon.until_ledger(free=4, host_bytes=0)


def test_pages_that_are_not_free_are_refused_at_once(daemon: Daemon) -> None:
    (one, first), (two, second) = member(daemon, "a", 4), member(daemon, "b", 4)
    with one.resident(), two.resident():
        with pytest.raises(PoolFullError, match="'a' asked for 3 pages more and 2 are free"):
            one.resize(first, 4 * PAGE_BYTES)
        one.resize(first, 3 * PAGE_BYTES)
        with pytest.raises(PoolFullError):
            two.resize(second, 2 * PAGE_BYTES)
        one.resize(first, PAGE_BYTES)
        until(lambda: daemon.status().pages_free == 2)
        two.resize(second, 3 * PAGE_BYTES)
        assert content(second) == bytes(3 * PAGE_BYTES)
    one.close()
    two.close()


def test_more_pages_than_a_message_has_descriptors(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(pages=600)
    session = DaemonSession(daemon.socket_path, "large")
    session.declare(10, 0, 0)
    first = session.acquire(60.0).pages
    more = session.extend(590).pages
    assert len({page.handle for page in first + more}) == 600
    session.release([page.handle for page in more[:300]])
    daemon.until_ledger(free=300)
    assert len(session.extend(300).pages) == 300
    session.give_back(None)
    daemon.until_ledger(free=600)
    session.close()


@pytest.mark.parametrize("persistent", [False, True])
def test_every_call_of_a_growth_may_fail(
    daemon: Daemon, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages still mapped stay the worker's in the daemon's ledger, others are free at once."""
    plan = FaultPlan()
    monkeypatch.setattr(
        client, "open_driver", lambda device: observe(with_faults(open_host_driver(), plan))
    )
    model, region = member(daemon, "a", 4)
    still_mapped, nth, injected = set(), 0, 1
    while injected:
        nth += 1
        with model.resident():
            plan.arm(nth, OUT_OF_MEMORY, persistent)
            try:
                model.resize(region, 3 * PAGE_BYTES)
            except DriverError:
                still_mapped.add(region.mapped_pages)
            injected = plan.injected
            plan.disarm()
            daemon.until_ledger(free=3 if region.mapped_pages == 1 else 1)
        model.swap_out()
        daemon.until_ledger(free=4)
        model.resize(region, PAGE_BYTES)
    # Only a device that fails for good leaves pages mapped.
    assert 1 in still_mapped
    assert (3 in still_mapped) == persistent == (len(still_mapped) > 1)
    model.close()


def test_host_memory_that_came_to_nothing_is_taken_off_the_account(daemon: Daemon) -> None:
    model, region = member(daemon, "a", 4)
    held_bytes = daemon.status().host_bytes
    with pytest.raises(GpupoolError):
        model.region("weights", 5000, capacity_bytes=1 << 60)
    daemon.until_ledger(free=4, host_bytes=held_bytes)
    with model.resident():
        other = DaemonSession(daemon.socket_path, "b")
        other.declare(3, 0, 0)
        other.acquire(60.0)
        with pytest.raises(PoolFullError):
            model.resize(region, 2 * PAGE_BYTES)
        daemon.until_ledger(free=0, host_bytes=held_bytes)
        other.give_back(None)
        other.close()
    model.close()


def holder() -> tuple[Bench, FakePeer, list[int]]:
    bench = Bench()
    peer = bench.worker("a", 1)
    (granted,) = bench.tell(peer, p.Acquire())
    return bench, peer, granted.pages


@pytest.mark.parametrize("pages", [[9], "held", "twice"], ids=str)
def test_pages_a_worker_does_not_have_or_needs_it_cannot_release(pages: list[int] | str) -> None:
    bench, peer, held = holder()
    named = {"held": held, "twice": held * 2}.get(str(pages), pages)
    with pytest.raises(ProtocolError):
        bench.tell(peer, p.Release(cast(list[int], named)))
    assert bench.ledger() == (3, 1, 0)


@pytest.mark.parametrize("size_bytes", [0, 1, 4096])
def test_host_memory_a_worker_does_not_have_it_cannot_give_back(size_bytes: int) -> None:
    bench, peer, _ = holder()
    with pytest.raises(ProtocolError):
        bench.tell(peer, p.HostMemoryUnused(size_bytes))
    bench.tell(peer, p.HostMemory(5000), p.HostMemoryUnused(5000))
    assert bench.status().host_bytes == 0


def test_a_lease_is_extended_while_it_is_held() -> None:
    bench = Bench()
    peer = bench.worker("a", 1)
    (refused,) = bench.tell(peer, p.Extend(1))
    assert refused.kind == "refused"
    bench.tell(peer, p.Acquire())
    for pages, kind in ((0, "refused"), (4, "pool_full"), (2**32, "pool_full")):
        (refused,) = bench.tell(peer, p.Extend(pages))
        assert refused.kind == kind
    (granted,) = bench.tell(peer, p.Extend(3))
    assert (len(granted.pages), len(granted.new), granted.last) == (3, 3, True)
    assert bench.ledger() == (0, 4, 0)
    bench.tell(peer, p.Release(granted.pages[:2]))
    assert bench.ledger() == (2, 2, 0)
    (again,) = bench.tell(peer, p.Extend(2))
    assert again.new == []  # it has their descriptors


def test_an_extension_that_the_device_refuses_changes_nothing() -> None:
    for nth in (1, 2, 3, 4):  # two pages created, then two exported
        bench, peer, _ = holder()
        bench.faults.arm(nth, OUT_OF_MEMORY)
        (refused,) = bench.tell(peer, p.Extend(2))
        assert (refused.kind, refused.status) == ("driver", OUT_OF_MEMORY)
        assert bench.ledger() == (3, 1, 0)
        (granted,) = bench.tell(peer, p.Extend(2))
        assert len(granted.new) == 2


def test_memory_released_goes_to_who_waits() -> None:
    bench = Bench(turn_s=100.0)
    first, second = bench.worker("a", 1), bench.worker("b", 2)
    bench.tell(first, p.Idle(False), p.Acquire())
    (granted,) = bench.tell(first, p.Extend(2))
    assert bench.tell(second, p.Acquire()) == []
    bench.tell(first, p.Release(granted.pages[:1]))
    assert isinstance(second.take()[0], p.Granted)


def test_pages_that_go_ahead_of_a_model_stay_in_its_footprint() -> None:
    bench = Bench(turn_s=100.0)
    first, second = bench.worker("a", 3), bench.worker("b", 2)
    (granted,) = bench.tell(first, p.Idle(False), p.Acquire())
    bench.tell(first, p.Release(granted.pages[:1], leaving=True))
    (refused,) = bench.tell(first, p.Extend(1))
    assert refused.kind == "refused"
    assert bench.ledger() == (2, 2, 0)
    assert isinstance(bench.tell(second, p.Acquire())[0], p.Granted)
    assert bench.tell(first, p.Yielded(None), p.Acquire()) == []  # two of three are free
    bench.tell(second, p.Yielded(None))
    (granted,) = first.take()
    assert len(granted.pages) == 3
