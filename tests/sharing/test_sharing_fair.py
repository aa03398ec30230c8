"""Models that share make room for one that does not, and what goes wrong half-way is put right."""

from __future__ import annotations

import ctypes
import errno
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpupool
from gpupool._core import PagePool, Region, open_host_driver
from gpupool.errors import UsageError
from gpupool.residency import adding
from gpupool.sharing.contents import Contents

PAGE_BYTES = 2 << 20
COMMON = os.urandom(4 * PAGE_BYTES)


def sharer(pool: gpupool.Pool, name: str, own_pages: int = 0) -> tuple[gpupool.Model, Region]:
    model = pool.model(name, shares=True, lease_timeout_s=20.0)
    content = COMMON + os.urandom(own_pages * PAGE_BYTES)
    region = model.region("weights", len(content))
    memoryview(region.image())[:] = content  # type: ignore[arg-type]
    region.adopt_image()
    model.share()
    return model, region


def pool_of(pages: int) -> gpupool.Pool:
    return gpupool.Pool(device="host", budget_bytes=pages * PAGE_BYTES, page_bytes=PAGE_BYTES)


@pytest.mark.parametrize(
    ("own_pages", "budget", "needed"), [(0, 4, 2), (0, 4, 4), (1, 6, 6), (1, 6, 1)]
)
@pytest.mark.parametrize("warm", [False, True])
def test_two_that_share_make_room_for_a_third(
    own_pages: int, budget: int, needed: int, warm: bool
) -> None:
    pool = pool_of(budget)
    models = [sharer(pool, name, own_pages)[0] for name in "ab"]
    for model in models:
        with model.resident():
            pass
    if warm:  # one that needs a page more than is free has them keep what they can
        small = pool.model("small", lease_timeout_s=20.0)
        small.region("workspace", PAGE_BYTES)
        with small.resident():
            pass
        small.close()
    third = pool.model("c", lease_timeout_s=20.0)
    third.region("workspace", needed * PAGE_BYTES)
    with third.resident():
        assert pool.free_bytes <= (budget - needed) * PAGE_BYTES
    for model in models:
        with model.resident():
            pass
    pool.close()


def test_a_closed_model_cannot_be_shared() -> None:
    pool = pool_of(6)
    model, _ = sharer(pool, "a")
    model.close()
    with pytest.raises(UsageError, match="closed"):
        model.share()
    pool.close()


def test_what_was_resized_is_not_shared() -> None:
    pool = pool_of(6)
    model = pool.model("a", shares=True)
    region = model.region("weights", 2 * PAGE_BYTES, capacity_bytes=3 * PAGE_BYTES)
    region.adopt_image()
    model.resize(region, 3 * PAGE_BYTES)
    region.adopt_image()
    with pytest.raises(UsageError, match="resized"):
        model.share()
    with model.resident(writes=True):
        ctypes.memset(region.address, 3, 5)
    pool.close()


def test_what_shrank_can_be_written_to_again() -> None:
    pool = pool_of(6)
    model = pool.model("a", shares=True)
    region = model.region("weights", 3 * PAGE_BYTES)
    region.adopt_image()
    model.resize(region, 2 * PAGE_BYTES)
    model.share()
    with model.resident(writes=True):
        ctypes.memset(region.address, 3, 5)
    model.swap_out()
    with model.resident():
        assert ctypes.string_at(region.address, 6) == b"\3" * 5 + b"\0"
    pool.close()


def test_an_image_that_is_looked_at_is_not_shared() -> None:
    pool = pool_of(6)
    model = pool.model("a", shares=True)
    region = model.region("weights", PAGE_BYTES)
    region.adopt_image()
    with memoryview(region.image()), pytest.raises(UsageError, match="looks at"):  # type: ignore[arg-type]
        model.share()
    model.share()
    pool.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_share_is_one_or_none(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """The interrupt comes before the image is another's, or behind."""
    pool = pool_of(8)
    one, first = sharer(pool, "a")
    other = pool.model("b", shares=True, lease_timeout_s=20.0)
    region = other.region("weights", len(COMMON))
    memoryview(region.image())[:] = COMMON  # type: ignore[arg-type]
    region.adopt_image()
    replace = Region.replace_image

    def interrupted(self: Region, extents: object, is_shared: bool) -> bool:
        if when == "after":
            replace(self, extents, is_shared)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Region, "replace_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.share()
    with other.resident(writes=True):
        ctypes.memset(region.address, 0xEE, 9)
    other.swap_out()
    with one.resident():
        assert ctypes.string_at(first.address, 9) == COMMON[:9]
    with other.resident():
        assert ctypes.string_at(region.address, 10) == b"\xee" * 9 + COMMON[9:10]
    pool.close()


@pytest.mark.parametrize("call", ["replace_image", "unseal"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_unshare_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    pool = pool_of(8)
    one, first = sharer(pool, "a")
    other, region = sharer(pool, "b")
    real = getattr(Region, call)

    def interrupted(self: Region, *arguments: object, **named: object) -> object:
        if when == "after":
            real(self, *arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Region, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.unshare()
    for model, its in ((one, first), (other, region)):
        with model.resident():
            assert ctypes.string_at(its.address, len(COMMON)) == COMMON
    with other.resident(writes=True):
        ctypes.memset(region.address, 0xEE, 9)
    other.swap_out()
    with one.resident(), other.resident():
        assert ctypes.string_at(first.address, 9) == COMMON[:9]
        assert ctypes.string_at(region.address, 9) == b"\xee" * 9
    pool.close()
    assert pool._arbiter.images._store.held_bytes == 0


def test_no_descriptor_for_what_may_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(4)
    model = pool.model("a", shares=True)

    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(adding.os, "dup", refuse)
        with pytest.raises(OSError, match="too many"):
            model.region("weights", PAGE_BYTES)
    assert model.regions("weights") == []
    model.region("weights", PAGE_BYTES).adopt_image()
    model.share()
    with model.resident():
        assert pool.free_bytes == 3 * PAGE_BYTES
    pool.close()


def test_a_door_and_a_share_at_once() -> None:
    for _ in range(20):
        pool = pool_of(4)
        model = pool.model("a", shares=True, lease_timeout_s=20.0)
        region = model.region("weights", PAGE_BYTES)
        region.adopt_image()
        start = threading.Barrier(2)

        def share(start: threading.Barrier = start, model: gpupool.Model = model) -> None:
            start.wait()
            model.share()

        thread = threading.Thread(target=share)
        thread.start()
        start.wait()
        with model.resident(writes=True):
            ctypes.memset(region.address, 1, 100)
        thread.join()
        with model.resident():
            assert ctypes.string_at(region.address, 101) == b"\1" * 100 + b"\0"
        pool.close()


@given(
    st.lists(st.sets(st.integers(1, 4), min_size=1), min_size=1, max_size=8),
    st.permutations([1, 2, 3, 4]),
)
def test_what_comes_free_adds_up(holders: list[set[int]], order: list[int]) -> None:
    """Whoever leave, in the order in which they are asked, free what only they had."""
    pages = PagePool(open_host_driver(), 8 * PAGE_BYTES, PAGE_BYTES)
    contents = Contents(pages)
    for key in order:
        contents.declare(key, dict(enumerate(bytes([i]) * 32 for i in range(len(holders)))))
    for place, keys in enumerate(holders):
        for key in keys:
            contents.has(key, {place: place})
    left = contents.left_to_others(lambda key: (order.index(key),))
    for count in range(1, 5):
        gone = set(order[:count])
        freed = sum(keys <= gone for keys in holders)
        held = sum(len(keys & gone) for keys in holders)
        assert freed == held - sum(left[key] for key in gone)
