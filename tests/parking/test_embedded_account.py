"""What is on the account of an embedded pool, and who waits for how long."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from embedded_members import (
    HELD_BYTES,
    PAGE_BYTES,
    Member,
    Watched,
    beside,
    closed_at_the_end,
    parked,
    pool_of,
    until,
)

from gpupool import Pool
from gpupool.errors import KvStoreFullError, LeaseTimeoutError, RefusedError, SwapCancelledError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import as_blocks
from gpupool.kv.store import KvIdentity, KvStore
from gpupool.residency.parked_file import ParkedFile


def store_of(member: Member) -> KvStore:
    layout = BlockLayout.of([(0, PAGE_BYTES // 4, PAGE_BYTES // 4)], 64)
    identity = KvIdentity(member.name, 1, "int8", layout)
    return KvStore(member.model, identity, slab_bytes=PAGE_BYTES)


def test_kv_blocks_are_on_the_account_and_others_park_for_the_next(pool: Pool) -> None:
    """Who must not wait is refused, and whom it would have waited for parks meanwhile."""
    a, b = Member(pool, "a"), Member(pool, "b")
    store = store_of(a)
    with a.model.resident():
        with pytest.raises(KvStoreFullError, match="0 of the host budget are free"):
            store.reserve(as_blocks([0], 64))
        until(lambda: b.is_parked)
        store.reserve(as_blocks(range(4), 64))
        assert pool.statistics().host_bytes == HELD_BYTES + PAGE_BYTES
    a.model.swap_out()
    with pytest.raises(RefusedError, match="no other model can park its images in"):
        pool.model("large").region("weights", 3 * PAGE_BYTES)  # for which all images would go
    store.release(as_blocks(range(4), 64))
    store.close()
    large = pool.model("as large")
    large.region("weights", 3 * PAGE_BYTES)
    assert parked(a, b) == ["a", "b"]
    said = r"no host memory within .* \(model 'as large' has no image that could be parked\)"
    with pytest.raises(LeaseTimeoutError, match=said), a.model.resident(0.05):
        raise AssertionError("it is not filled yet, and may be soon")
    large.close()
    a.check()


def test_models_that_share_are_on_the_account_once_and_stay(pool: Pool) -> None:
    def sharer(name: str) -> Any:
        model = pool.model(name, shares=True)
        region = model.region("weights", PAGE_BYTES)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(region.image())), 7, PAGE_BYTES)
        region.adopt_image()
        model.share()
        return model

    a, b = sharer("a"), sharer("b")
    assert pool.statistics().host_bytes == PAGE_BYTES
    plain = Member(pool, "plain")
    with pytest.raises(RefusedError, match="no other model can park its images in"):
        pool.model("large").region("weights", 3 * PAGE_BYTES + 4096)  # what is shared stays
    for model in (a, b):
        with model.resident():
            where = model.regions("weights")[0].address
            assert ctypes.string_at(where, PAGE_BYTES) == bytes([7]) * PAGE_BYTES
    with pytest.raises(RefusedError):  # it must not wait for a model to park
        b.unshare()
    until(lambda: plain.is_parked)
    b.unshare()
    assert pool.statistics().host_bytes == 2 * PAGE_BYTES
    a.close()
    plain.check()
    assert b.parked_bytes == 0


def test_who_asks_ahead_is_behind_who_waits(pool: Pool) -> None:
    a, b, c = (Member(pool, name) for name in "abc")
    d = Member(pool, "d")
    assert parked(a, b, c, d) == ["a", "b"]
    line = pool._arbiter.host._line
    keys = {model.name: key for key, model in pool._models.items()}
    with contextlib.ExitStack() as pins:
        for member in (c, d):
            pins.enter_context(member.model.pinned())
        with beside(a.model.prefetch) as ahead, beside(b.check) as due:
            until(lambda: line.has(keys["a"]) and line.has(keys["b"]))
            assert line.first is not None and line.first.key == keys["b"]
            a.model.gate.give_up()  # which ends what comes ahead
            pins.close()
    assert isinstance(ahead[0], SwapCancelledError), ahead
    assert due == [None]


def test_the_first_in_line_is_not_overtaken(pool: Pool) -> None:
    """Who needs little waits behind who needs much, although there would be room for it."""
    a = Member(pool, "a")
    line = pool._arbiter.host._line
    much, little = pool.model("much"), pool.model("little")
    keys = {model.name: key for key, model in pool._models.items()}
    with contextlib.ExitStack() as pin:
        pin.enter_context(a.model.pinned())
        with beside(lambda: much.region("weights", 3 * PAGE_BYTES)) as first:
            until(lambda: line.has(keys["much"]))
            with beside(lambda: little.region("weights", 4096)) as second:
                until(lambda: len(pool._arbiter._changed._waiters) == 2)  # both have looked
                assert line.first is not None and line.first.key == keys["much"]
                assert line.has(keys["little"])
                pin.close()
    assert [len(first), len(second)] == [1, 1]
    assert (much.footprint_bytes, little.footprint_bytes) == (3 * PAGE_BYTES, PAGE_BYTES)
    assert a.is_parked


def test_images_that_come_back_as_soon_as_they_are_parked_count_as_back(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    watched, session = Watched(), a.model._session
    monkeypatch.setattr(a.model._residency.parking, "_lock", watched)
    tell, threads = session.parked, []

    def look() -> None:
        with a.model.pinned():
            pass

    def tell_late(*what: Any, **more: Any) -> None:
        threads.append(threading.Thread(target=look))
        threads[-1].start()
        until(lambda: watched.awaited.is_set() or not threads[-1].is_alive())
        tell(*what, **more)

    monkeypatch.setattr(session, "parked", tell_late)
    with b.model.resident(), pytest.raises(RefusedError):
        b.model.host_memory(4096)  # for which "a" parks
    until(lambda: len(threads) == 1 and a.statistics.read_backs == 1)
    threads[0].join()
    assert a.statistics.parked_bytes == a.model.parked_bytes == 0
    monkeypatch.undo()
    c = Member(pool, "c")
    assert parked(a, b, c) != []


def not_filled(member: Member, _: pytest.MonkeyPatch) -> Callable[[], object]:
    member.model.remove_region(member.region)
    return member.model.region("weights", HELD_BYTES).adopt_image


def looked_at(member: Member, _: pytest.MonkeyPatch) -> Callable[[], object]:
    return memoryview(member.region.image()).release  # type: ignore[arg-type]


def changed(member: Member, patch: pytest.MonkeyPatch) -> Callable[[], object]:
    write = ParkedFile.write

    def write_late(self: ParkedFile, *what: Any) -> None:
        write(self, *what)
        member.region.adopt_image()

    patch.setattr(ParkedFile, "write", write_late)
    return patch.undo


@pytest.mark.parametrize("stays", [not_filled, looked_at, changed])
def test_who_waits_for_images_that_cannot_go_for_now_gets_them_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stays: Callable[..., Callable[[], object]]
) -> None:
    with closed_at_the_end(pool_of(folder, images=1), folder) as pool:
        a = Member(pool, "a")
        images = pool._arbiter.host.images(a.model._session.key)  # type: ignore[attr-defined]
        end = stays(a, monkeypatch)
        with beside(lambda: Member(pool, "b")) as found:
            until(lambda: bool(images.why) or bool(found))
            end()
        assert isinstance(found[0], Member), found
        assert a.is_parked


def test_nobody_waits_for_a_model_that_grew_and_may_never_come_in(folder: Path) -> None:
    with closed_at_the_end(pool_of(folder, images=2), folder) as pool:
        model = pool.model("a")
        region = model.region("weights", PAGE_BYTES, capacity_bytes=3 * PAGE_BYTES)
        region.adopt_image()
        model.resize(region, 3 * PAGE_BYTES)
        with pytest.raises(RefusedError, match="model 'a' has no image that could be parked"):
            Member(pool, "b")
