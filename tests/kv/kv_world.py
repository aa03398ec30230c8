"""A KV cache on the host device, whose memory any code can see, beside a plain model of it.

Every block is stamped with its number and a generation. What a step can read must be the stamp of
its last write, whatever was saved, lost, restored and forgotten in between.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpupool import Model, Pool
from gpupool._core import Driver, FaultPlan, Region, Verify, open_host_driver, with_faults
from gpupool.kernels.layout import BlockLayout
from gpupool.kv import cache as cache_module
from gpupool.kv import digests as digests_module
from gpupool.kv import mover as mover_module
from gpupool.kv import store as store_module

PAGE_BYTES = 2 << 20
SLAB_BYTES = 4096
BLOCKS = 24


class Memories:
    """Host memory of a session, counted, and refused when told to."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.held: Counter[int] = Counter()
        self.inodes: set[int] = set()
        self.refuse_at = 0  # this call from now, 1 is the next

    def host_memory(self, size_bytes: int) -> int:
        self.refuse_at -= 1
        if self.refuse_at == 0:
            raise OSError(12, "no memory")
        fd = os.memfd_create("slab", os.MFD_CLOEXEC)
        os.ftruncate(fd, size_bytes)
        self.inodes.add(os.fstat(fd).st_ino)
        self.held[size_bytes] += 1
        return fd

    def return_host_memory(self, size_bytes: int) -> None:
        assert self.held[size_bytes] > 0, "more was given back than was granted"
        self.held[size_bytes] -= 1

    @property
    def bytes(self) -> int:
        return sum(size * count for size, count in self.held.items())


@dataclass(frozen=True)
class Modules:
    """Where the classes come from: the tests of planted bugs bring their own."""

    cache: ModuleType = cache_module
    digests: ModuleType = digests_module
    mover: ModuleType = mover_module
    store: ModuleType = store_module


def layout_of(chooser: random.Random, blocks: int = BLOCKS) -> BlockLayout:
    """Pieces one after the other, or all of a block in one place."""
    sizes = [chooser.choice([8, 24, 100, 512, 1000]) for _ in range(chooser.randint(1, 3))]
    if chooser.random() < 0.5:  # layers apart
        pieces, offset = [], 0
        for size in sizes:
            stride = size + chooser.choice([0, 8, 40])
            pieces.append((offset, stride, size))
            offset += stride * blocks
        return BlockLayout.of(pieces, blocks)
    stride = sum(sizes) + chooser.choice([0, 16])
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return BlockLayout.of([(s, stride, n) for s, n in zip(starts, sizes, strict=True)], blocks)


class World:
    """One model: its device memory, cache and store, and what each block should hold."""

    def __init__(
        self,
        seed: int,
        *,
        stepped: bool = True,
        rows: int = BLOCKS,
        modules: Modules | None = None,
        method: str | None = None,
        verify: Verify | None = None,
    ) -> None:
        chooser = random.Random(seed)
        if verify is None:  # most lives look at every block
            verify = random.Random(seed).choice([*[Verify.always] * 4, Verify.sample, Verify.off])
        self.verify = verify
        of = modules or Modules()
        self.layout = layout_of(chooser)
        self.plan = FaultPlan()
        driver = with_faults(open_host_driver(seed if stepped else None), self.plan)
        self.pool = Pool(
            device="host", budget_bytes=PAGE_BYTES, page_bytes=PAGE_BYTES, driver=driver
        )
        self.driver = self.pool.driver
        self.model: Model = self.pool.model("a")
        self.region: Region = self.model.region("workspace", self.layout.extent_bytes)
        self.memories = Memories(self.driver)
        self.identity = of.store.KvIdentity("a", 1, "float16", self.layout)
        row_bytes = -(-self.layout.row_bytes // 16) * 16
        budget_bytes = -(-rows // (SLAB_BYTES // row_bytes)) * SLAB_BYTES
        self.store: Any = of.store.KvStore(
            self.memories, self.identity, budget_bytes=budget_bytes, slab_bytes=SLAB_BYTES
        )
        self.cache: Any = of.cache.KvCache(
            self.store,
            of.mover.CopierMover(
                self.driver,
                self.layout,
                self.region.address,
                method=method or chooser.choice(["batch", "each"]),
            ),
            of.digests.BlockDigests(self.driver, self.layout, self.region.address, verify),
            self.identity,
            chunk_bytes=chooser.choice([1, 4]) * self.layout.row_bytes,
            window_bytes=chooser.choice([1, 6, 100]) * self.layout.row_bytes,
        )
        self.generation = 0
        self.content: dict[int, int] = {}  # what each block that counts was last stamped with
        self.unsaved: set[int] = set()
        self.resident = False

    # What there is.

    def stamp(self, block: int, generation: int) -> bytes:
        unit = bytes([block + 1, generation % 251, generation // 251 % 251, 7])
        return (unit * (self.layout.row_bytes // 4 + 1))[: self.layout.row_bytes]

    def device(self, block: int) -> bytes:
        return b"".join(
            ctypes.string_at(self.region.address + p.offset + block * p.stride, p.bytes)
            for p in self.layout.pieces
        )

    def put(self, block: int, row: bytes) -> None:
        at = 0
        for p in self.layout.pieces:
            place = self.region.address + p.offset + block * p.stride
            ctypes.memmove(place, row[at : at + p.bytes], p.bytes)
            at += p.bytes

    def row_of(self, block: int) -> int:
        """Where its copy on the host is."""
        return int(self.store.addresses(np.array([block]), self.identity)[0])

    def slip(self, blocks: set[int], times: int) -> Callable[[], None]:
        """So many of the next moves to the device bring a bit of each of these blocks wrong.

        What is returned ends that.
        """
        mover, to_device = self.cache._mover, self.cache._mover.to_device
        piece, left = self.layout.pieces[-1], times

        def moved(moving: np.ndarray, rows: np.ndarray) -> None:
            nonlocal left
            to_device(moving, rows)
            wrong = blocks.intersection(moving.tolist())
            if left > 0 and wrong:
                left -= 1
                mover.synchronize()
                for block in wrong:
                    flip(self.region.address + piece.offset + block * piece.stride, block % 8)

        def end() -> None:
            mover.to_device = to_device

        mover.to_device = moved
        return end

    def scribble(self) -> None:
        """The device memory went, and other memory is in its place."""
        ctypes.memset(self.region.address, 0xEE, self.region.bytes)

    def amounts(self) -> dict[str, int]:
        observer = self.driver.observer
        assert observer is not None
        return observer.amounts()

    def calls(self, name: str) -> int:
        observer = self.driver.observer
        assert observer is not None
        return observer.calls()[name].calls

    # What may be done.

    def swap_in(self, first: Iterable[int] = ()) -> None:
        assert not self.resident
        self.model.gate.open_step()
        self.resident = True
        self.cache.restore(first)

    def swap_out(self) -> None:
        self.save()
        self.cache.drain()
        self.cache.lost()
        self.resident = False
        self.model.gate.close_step()
        self.model.swap_out()  # refused by the driver while something is in flight

    def write(self, blocks: list[int], *, unbacked: bool = False) -> None:
        self.cache.written(blocks, unbacked=unbacked)
        self.generation += 1
        for block in blocks:
            if block in self.content:  # a step reads what it adds to
                assert self.device(block) == self.stamp(block, self.content[block])
            self.put(block, self.stamp(block, self.generation))
            self.content[block] = self.generation
        self.unsaved.update(blocks)

    def read(self, blocks: list[int]) -> None:
        self.cache.require(blocks)
        for block in blocks:
            if block in self.content:
                assert self.device(block) == self.stamp(block, self.content[block]), block

    def save(self) -> None:
        before, unsaved = self.amounts()["to_host_bytes"], len(self.unsaved)
        saved = self.cache.statistics().bytes_saved
        assert self.cache.save() == unsaved
        self.unsaved.clear()
        expected = unsaved * self.layout.row_bytes
        assert self.amounts()["to_host_bytes"] - before == expected
        assert self.cache.statistics().bytes_saved - saved == expected

    def forget(self, blocks: list[int]) -> None:
        self.cache.forget(blocks)
        for block in blocks:
            self.content.pop(block, None)
            self.unsaved.discard(block)

    @property
    def capacity(self) -> int:
        """How many rows fit into the budget."""
        slabs = self.store.statistics().budget_bytes // SLAB_BYTES
        return slabs * (SLAB_BYTES // (-(-self.layout.row_bytes // 16) * 16))

    def check_accounts(self, exact: bool = True) -> None:
        of, kept = self.cache.statistics(), self.store.statistics()
        assert of.written == len(self.unsaved) or (not exact and of.written < len(self.unsaved))
        amounts = self.amounts()
        assert of.bytes_saved <= amounts["to_host_bytes"]
        assert of.bytes_restored <= amounts["to_device_bytes"]
        assert of.written + of.saved + of.away + of.coming == len(self.content)
        assert kept.rows_live >= len(self.content) - of.unbacked
        assert kept.held_bytes == self.memories.bytes <= kept.budget_bytes
        if not self.resident:
            assert of.saved == of.coming == 0

    def finish(self) -> None:
        """Everything is still there; then nothing is held."""
        if not self.resident:
            self.swap_in()
        self.read(list(self.content))
        self.cache.close()
        self.model.gate.close_step()
        self.pool.close()
        assert self.memories.bytes == 0
        assert self.amounts()["registered_bytes"] == 0


def flip(address: int, bit: int) -> None:
    """One bit, counted from there."""
    byte = ctypes.c_uint8.from_address(address + bit // 8)
    byte.value ^= 1 << bit % 8


def unbacked_of(world: World) -> set[int]:
    return {b for b in world.unsaved if not world.store.has_row(np.array([b]))[0]}


def choose(chooser: random.Random) -> list[int]:
    return chooser.sample(range(BLOCKS), chooser.randint(1, 8))
