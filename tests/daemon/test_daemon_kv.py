"""KV blocks and a daemon: pages on their way, host memory on its books, a store that is full."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from daemon_bench import PAGE_BYTES, Daemon, until

from gpupool.daemon.client import DaemonSession
from gpupool.errors import DamagedMemoryError, LeaseTimeoutError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.paged import PagedKv
from gpupool.model import Model

BLOCKS = 16
BLOCK_BYTES = 64 << 10
LAYOUT = BlockLayout.of([(0, BLOCK_BYTES, BLOCK_BYTES)], blocks=BLOCKS)


def paged(daemon: Daemon, name: str, weights_pages: int, **more: Any) -> tuple[Model, PagedKv]:
    """A model of this process, with some pages of weights and one of KV."""
    session = DaemonSession(daemon.socket_path, name)
    model = Model(name, session, lease_timeout_s=30.0)
    model.region("weights", weights_pages * PAGE_BYTES)
    return model, PagedKv(model, LAYOUT, region_bytes=PAGE_BYTES, dtype="int8", **more)


def write(kv: PagedKv, block: int, byte: int) -> None:
    kv.write([block])
    ctypes.memset(kv.region.address + block * BLOCK_BYTES, byte, BLOCK_BYTES)


def holds(kv: PagedKv, block: int, byte: int) -> bool:
    kv.require([block])
    seen = ctypes.string_at(kv.region.address + block * BLOCK_BYTES, BLOCK_BYTES)
    return seen == bytes([byte]) * BLOCK_BYTES


def test_a_model_leaves_no_more_than_the_next_needs(daemon: Daemon) -> None:
    """Four pages: a holds three of weights and one of KV, b needs one of each."""
    a, of_a = paged(daemon, "a", 3)
    b, of_b = paged(daemon, "b", 1)
    with a.resident():
        write(of_a, 3, 0x33)
    a.swap_out()
    for turn in range(3):
        with a.resident():
            assert holds(of_a, 3, 0x33)
            report = a.last_swap_in
            assert report is not None
            assert report.copied_bytes == (3 if turn == 0 else 1) * PAGE_BYTES
        with b.resident():
            write(of_b, 3, 0x44 + turn)
            assert (a.warm_bytes, b.warm_bytes) == (2 * PAGE_BYTES, 0)
            held = {m.name: m.held_bytes for m in daemon.status().models}
            assert held == {"a": 2 * PAGE_BYTES, "b": 2 * PAGE_BYTES}
        with a.resident(), pytest.raises(LeaseTimeoutError):
            b.gate.open_step(0.01)
        with b.resident():
            assert holds(of_b, 3, 0x44 + turn)
    needs = {"a": 4 * PAGE_BYTES, "b": 2 * PAGE_BYTES}  # also of who is out
    assert {m.name: m.footprint_bytes for m in daemon.status().models} == needs
    a.close()
    b.close()
    until(lambda: daemon.status().host_bytes == 0)
    assert daemon.status().pages_free == 4


def test_what_blocks_took_of_the_link_is_told_as_their_model_leaves(daemon: Daemon) -> None:
    a, of_a = paged(daemon, "a", 1)
    ways: list[tuple[int, int]] = []
    for turn in range(3):
        with a.resident():
            write(of_a, turn, 0x33)
            for block in range(turn):
                assert holds(of_a, block, 0x33)
        assert daemon.status().models[0].moved_blocks_out.bytes == turn * BLOCK_BYTES
        a.swap_out()
        told = daemon.status().models[0]
        ways.append((told.moved_blocks_in.bytes, told.moved_blocks_out.bytes))
        assert told.moved_blocks_out.seconds > 0
        assert told.moved_out.bytes == PAGE_BYTES  # of weights, which nobody wrote to again
    assert ways == [(0, BLOCK_BYTES), (BLOCK_BYTES, 2 * BLOCK_BYTES), (3 * BLOCK_BYTES,) * 2]
    of = of_a.cache.statistics()
    assert (told.moved_blocks_in.seconds, told.moved_blocks_out.seconds) == pytest.approx(
        (of.restoring_s, of.saving_s)
    )
    a.close()


def test_a_block_that_came_right_the_second_time_is_told(daemon: Daemon) -> None:
    a, of_a = paged(daemon, "a", 1)
    with a.resident():
        write(of_a, 3, 0x33)
    a.swap_out()
    of_a.cache._digests._saved[3] ^= np.uint64(1)  # so that it seems wrong
    looked = of_a.cache._digests.wrong

    def once(*more: Any) -> Any:
        found = looked(*more)
        of_a.cache._digests._saved[3] ^= np.uint64(1)
        of_a.cache._digests.wrong = looked  # type: ignore[method-assign]
        return found

    of_a.cache._digests.wrong = once  # type: ignore[method-assign]
    with a.resident():
        assert holds(of_a, 3, 0x33)
    a.swap_out()
    assert daemon.status().models[0].recopied_bytes == BLOCK_BYTES
    a.close()


def test_a_damaged_block_is_refused_told_and_in_nobodys_way(daemon: Daemon) -> None:
    a, of_a = paged(daemon, "a", 1)
    b, of_b = paged(daemon, "b", 3)  # in all of which is room for one
    with a.resident():
        write(of_a, 3, 0x33)
        write(of_a, 4, 0x44)
    a.swap_out()
    row = int(of_a.cache._store.addresses(np.array([3]), of_a.cache._identity)[0])
    ctypes.memset(row + 5, 0x32, 1)
    of_a.bring_first([3, 4])
    with (
        pytest.raises(DamagedMemoryError, match=r"^model 'a': KV block 3 of 'a'"),
        a.resident(),
    ):
        raise AssertionError("a step began")
    until(lambda: daemon.status().models[0].damaged == 1)
    with b.resident():
        write(of_b, 3, 0x55)
    with a.resident():
        assert holds(of_a, 4, 0x44)
        with pytest.raises(DamagedMemoryError, match=r"^KV block 3 of 'a'"):
            holds(of_a, 3, 0x33)
        of_a.cache.forget([3])
        write(of_a, 3, 0x66)
    until(lambda: daemon.status().models[0].damaged == 2)
    with b.resident():
        assert holds(of_b, 3, 0x55)
    with a.resident():
        assert holds(of_a, 3, 0x66)
    a.close()
    b.close()
    until(lambda: daemon.status().host_bytes == 0)


def test_rows_are_on_the_books_while_they_are_kept(daemon: Daemon) -> None:
    a, kv = paged(daemon, "a", 1)
    before = daemon.status().host_bytes
    with a.resident():
        write(kv, 1, 1)
        assert daemon.status().host_bytes > before
    assert a.swap_out()
    kv.cache.forget_all()
    kv.cache._store.trim()
    until(lambda: daemon.status().host_bytes == before)
    a.close()


def test_a_model_without_room_for_its_blocks_stays_and_others_wait(daemon: Daemon) -> None:
    a, kv = paged(daemon, "a", 2, store_bytes=2 * BLOCK_BYTES)
    b, _ = paged(daemon, "b", 2)
    with a.resident():
        for block in range(3):
            write(kv, block, 0x50 + block)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(b.gate.open_step, 60)
        until(lambda: daemon.status().models[0].stays)
        status = daemon.status()
        assert "do not fit into the host store" in status.models[0].stays
        assert status.models[0].state == "resident"
        assert status.refusals == []
        with a.resident():
            assert holds(kv, 2, 0x52)
            kv.cache.forget([0])
        waiting.result(60)  # asked again, a could leave
    b.gate.close_step()
    until(lambda: daemon.status().models[0].stays == "")  # b may come before a has said so
    with a.resident():
        assert holds(kv, 1, 0x51)
    for model in (a, b):
        model.close()
