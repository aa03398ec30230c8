"""Fine-tunes of one base: what they have in common is on the host once, and moves once."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpupool
from gpupool._core import Region
from gpupool.errors import DamagedMemoryError, UsageError

PAGE_BYTES = 2 << 20
LAYERS, TUNED = 24, (5, 17)
LAYER_BYTES = 2 * PAGE_BYTES
WEIGHTS_BYTES = LAYERS * LAYER_BYTES + 5000  # what is behind the last whole page is never shared
PAGES = -(-WEIGHTS_BYTES // PAGE_BYTES)


def layer(index: int, tune: int) -> bytes:
    """Bytes that no other layer has."""
    own = tune if index in TUNED else 0
    pages = LAYER_BYTES // PAGE_BYTES
    return b"".join((b"%08d%04d%04d" % (index, i, own)) * (PAGE_BYTES // 16) for i in range(pages))


def weights(tune: int) -> bytes:
    return b"".join(layer(i, tune) for i in range(LAYERS)) + b"%08d" % tune * 625


def fine_tune(pool: gpupool.Pool, tune: int) -> tuple[gpupool.Model, Region]:
    model = pool.model(f"tune {tune}", shares=True)
    region = model.region("weights", WEIGHTS_BYTES)
    with memoryview(region.image()) as image:
        image[:] = weights(tune)
    region.adopt_image()
    return model, region


def has(model: gpupool.Model, region: Region, tune: int) -> bool:
    with model.resident():
        return ctypes.string_at(region.address, region.bytes) == weights(tune)


def host_bytes() -> int:
    """Of this process's memfds, each counted once."""
    seen: dict[int, int] = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if "memfd:gpupool-image" in str(link.readlink()):
                status = os.fstat(int(link.name))
                seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


@contextlib.contextmanager
def pool_of(pages: int) -> Iterator[gpupool.Pool]:
    pool = gpupool.Pool(device="host", budget_bytes=pages * PAGE_BYTES, page_bytes=PAGE_BYTES)
    try:
        yield pool
    finally:
        pool.close()


def test_two_of_24_layers() -> None:
    """Of 49 pages 44 are the same; the pool has room for one of the two."""
    with pool_of(PAGES) as pool:
        one, first = fine_tune(pool, 1)
        before = host_bytes()
        one.share()
        other, second = fine_tune(pool, 2)
        other.share()
        own_bytes = len(TUNED) * LAYER_BYTES + 8192  # and what is behind the last whole page
        assert host_bytes() - before == own_bytes
        assert has(one, first, 1)
        for model, region, tune in 2 * ((other, second, 2), (one, first, 1)):
            assert has(model, region, tune)
            report = model.last_swap_in
            assert report is not None
            assert report.shared_bytes == (LAYERS - len(TUNED)) * LAYER_BYTES
            assert report.copied_bytes == len(TUNED) * LAYER_BYTES + 5000
            assert report.verified_bytes == WEIGHTS_BYTES


def test_both_are_resident_on_little_more_than_one() -> None:
    with pool_of(PAGES + 5) as pool:
        models = [fine_tune(pool, tune) for tune in (1, 2)]
        for model, _ in models:
            model.share()
        for _ in range(2):
            for tune, (model, region) in enumerate(models, 1):
                assert has(model, region, tune)
        assert [model.swap_ins for model, _ in models] == [1, 1]
        assert pool.free_bytes == 0
        models[0][0].swap_out()
        assert pool.free_bytes == 5 * PAGE_BYTES
        assert has(*models[1], 2)
        models[1][0].close()
        assert pool.free_bytes == (PAGES + 5) * PAGE_BYTES
        assert has(*models[0], 1)


def test_three_in_turn_with_room_for_less_than_two() -> None:
    with pool_of(PAGES + 7) as pool:
        models = [fine_tune(pool, tune) for tune in (1, 2, 3)]
        for model, _ in models:
            model.share()
        copied = 0
        for _ in range(3):
            for tune, (model, region) in enumerate(models, 1):
                assert has(model, region, tune)
                assert model.last_swap_in is not None
                copied += model.last_swap_in.copied_bytes
        # The first time all of one, and then at the most what is each one's own.
        assert copied <= WEIGHTS_BYTES + 8 * (len(TUNED) * LAYER_BYTES + 5000)


def test_what_is_written_to_is_the_models_own_again() -> None:
    with pool_of(2 * PAGES) as pool:
        one, first = fine_tune(pool, 1)
        other, second = fine_tune(pool, 2)
        for model in (one, other):
            model.share()
        assert has(one, first, 1) and has(other, second, 2)
        with pytest.raises(UsageError, match="sealed"), one.resident():
            one.mark_written("weights")
        shared_bytes = host_bytes()
        with other.resident(writes=True):
            ctypes.memset(second.address, 7, 3)
        own_bytes = len(TUNED) * LAYER_BYTES + 8192
        assert host_bytes() == shared_bytes - own_bytes  # of a new one nobody has the descriptor
        other.swap_out()
        one.swap_out()
        assert has(one, first, 1)
        with other.resident():
            changed = b"\7\7\7" + weights(2)[3:]
            assert ctypes.string_at(second.address, second.bytes) == changed
        other.share()  # which it does no more
        one.unshare()
        assert has(one, first, 1)


def test_who_leaves_takes_nothing_from_the_others() -> None:
    with pool_of(PAGES) as pool:
        before = host_bytes()
        one, _ = fine_tune(pool, 1)
        other, second = fine_tune(pool, 2)
        for model in (one, other):
            model.share()
        one.close()
        assert has(other, second, 2)
        own_bytes = host_bytes()
        assert own_bytes - before == -(-WEIGHTS_BYTES // 4096) * 4096
        third, region = fine_tune(pool, 1)
        third.share()
        assert has(third, region, 1) and has(other, second, 2)
        other.close()
        third.close()
        assert host_bytes() == before


def test_a_page_that_is_not_what_it_should_be_is_had_anew() -> None:
    with pool_of(2 * PAGES) as pool:
        one, first = fine_tune(pool, 1)
        other, second = fine_tune(pool, 2)
        for model in (one, other):
            model.share()
        with one.resident():
            flip(pool, first.page_handles[7], 11)
            assert has(other, second, 2)
            report = other.last_swap_in
            assert report is not None and report.shared_bytes == 0
        other.swap_out()
        one.swap_out()
        assert has(one, first, 1) and has(other, second, 2)


def flip(pool: gpupool.Pool, handle: int, offset: int) -> None:
    """A bit of a page, behind the back of all who have it mapped, as faulty memory does."""
    pages = pool._pages
    page = next(p for p in map(pages.page, range(pages.created_pages)) if p.handle == handle)
    fd = page.export_fd()
    try:
        os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1]), offset)
    finally:
        os.close(fd)


def test_an_image_that_is_damaged_serves_nobody() -> None:
    with pool_of(PAGES) as pool:
        one, first = fine_tune(pool, 1)
        other, second = fine_tune(pool, 2)
        for model in (one, other):
            model.share()
        with memoryview(second.image()) as image:
            image[9] ^= 1  # which both have
        for model in (one, other):
            with pytest.raises(DamagedMemoryError), model.resident():
                pass
        with memoryview(first.image()) as image:
            image[9] ^= 1
        assert has(one, first, 1) and has(other, second, 2)


def test_sharing_must_be_asked_for() -> None:
    with pool_of(PAGES) as pool:
        with pytest.raises(UsageError, match="shares=True"):
            pool.model("a").share()
        model = pool.model("b", shares=True)
        model.unshare()
        region = model.region("weights", WEIGHTS_BYTES)
        with pytest.raises(UsageError, match="must have all of it"):
            model.share()
        with model.resident(writes=True):
            ctypes.memset(region.address, 3, 10)
        with pytest.raises(UsageError, match="in whose step it is"), model.resident():
            model.share()
        model.share()
        with model.resident():
            assert ctypes.string_at(region.address, 11) == b"\3" * 10 + b"\0"
