"""Two models with a paged KV cache each in a pool of one, and what their blocks should hold."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager

from gpupool import Model, Pool
from gpupool._core import FaultPlan, open_host_driver, with_faults
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.paged import PagedKv

PAGE_BYTES = 2 << 20
BLOCKS = 40
LAYOUT = BlockLayout.of([(0, 1000, 1000), (BLOCKS * 1000, 3096, 3096)], blocks=BLOCKS)


class Kept:
    """A model with weights and a KV cache, and what each of its blocks was last written with."""

    def __init__(self, pool: Pool, name: str, store_bytes: int | None = None) -> None:
        self.pool = pool
        self.model: Model = pool.model(name, lease_timeout_s=20.0)
        self.model.region("weights", 3000)
        self.kv = PagedKv(
            self.model, LAYOUT, region_bytes=PAGE_BYTES, dtype="int8", store_bytes=store_bytes
        )
        self.content: dict[int, int] = {}

    def step(self, chooser: random.Random) -> None:
        """Give some blocks out anew, write some and read some."""
        used = chooser.sample(range(BLOCKS), chooser.randint(1, 6))
        fresh = [block for block in used if block not in self.content or chooser.random() < 0.3]
        written = set(fresh) | {block for block in used if chooser.random() < 0.5}
        self.kv.cache.forget(fresh)
        for block in fresh:
            self.content.pop(block, None)
        self.kv.bring_first(used)
        with self.model.resident():
            self.kv.write(written)
            self.kv.cache.require(used)
            for block in used:
                if block in self.content:
                    assert self._seen(block) == self._stamp(block), block
            for block in written:
                self.content[block] = self.content.get(block, 0) + chooser.randint(1, 50)
                self._put(block)

    def check(self) -> None:
        """Everything is still there."""
        with self.model.resident():
            self.kv.cache.require(self.content)
            for block in self.content:
                assert self._seen(block) == self._stamp(block), block

    def _stamp(self, block: int) -> bytes:
        return bytes([block + 1, self.content[block] % 251]) * (LAYOUT.row_bytes // 2)

    def _seen(self, block: int) -> bytes:
        at = self.kv.region.address
        return b"".join(
            ctypes.string_at(at + p.offset + block * p.stride, p.bytes) for p in LAYOUT.pieces
        )

    def _put(self, block: int) -> None:
        row, start = self._stamp(block), 0
        for p in LAYOUT.pieces:
            place = self.kv.region.address + p.offset + block * p.stride
            ctypes.memmove(place, row[start : start + p.bytes], p.bytes)
            start += p.bytes


@contextmanager
def two(seed: int | None, plan: FaultPlan, store_bytes: int | None = None) -> Iterator[list[Kept]]:
    """Two models in a pool of one."""
    driver = with_faults(open_host_driver(seed), plan)
    pool = Pool(device="host", budget_bytes=2 * PAGE_BYTES, page_bytes=PAGE_BYTES, driver=driver)
    models = [Kept(pool, name, store_bytes) for name in ("a", "b")]
    try:
        yield models
    finally:
        plan.disarm()
        pool.close()
    assert [model.kv.cache._store.statistics().held_bytes for model in models] == [0, 0]
