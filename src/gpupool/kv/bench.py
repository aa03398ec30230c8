"""Memory on both sides to measure moves of blocks in, with every way of moving them over it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np

from gpupool._core import Driver
from gpupool.errors import DriverError, GpupoolError, UsageError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import Blocks, Words
from gpupool.kv.move_table import Direction
from gpupool.kv.mover import NOT_SUPPORTED, CopierMover, Mover
from gpupool.kv.planned_mover import movers
from gpupool.pool import MIB, Pool

DIRECTIONS: tuple[Direction, ...] = ("to_host", "to_device")
_PAGE_BYTES = 2 * MIB
_CHECKED_BYTES = 16 * MIB
_WORD_BYTES = 8


class Move(NamedTuple):
    """Blocks and the addresses of their rows, each in an order of its own."""

    blocks: Blocks
    rows: Words

    def seconds(self, way: Mover, direction: Direction) -> float:
        """From the first call until all has arrived. Raises DriverError."""
        begun_s = time.perf_counter()
        (way.to_host if direction == "to_host" else way.to_device)(*self)
        way.synchronize()
        return time.perf_counter() - begun_s


class Bench:
    """As much memory on the device as pinned on the host, for blocks of any size."""

    def __init__(self, driver: Driver, address: int, host_address: int, size_bytes: int) -> None:
        """Measure in these ``size_bytes`` on each side, while they stay there."""
        self.driver = driver
        self.address = address
        self.host_address = host_address
        self.size_bytes = size_bytes

    def ways(self, block_bytes: int) -> dict[str, Mover]:
        """All that this device has for blocks of that size, whole words of 8 bytes.

        Raises UsageError for another size, and DriverError.
        """
        if block_bytes < 1 or block_bytes % _WORD_BYTES:
            raise UsageError(f"blocks of {block_bytes} bytes are not measured: take whole words")
        layout = BlockLayout.of([(0, block_bytes, block_bytes)], self.size_bytes // block_bytes)
        found = movers(self.driver, layout, self.address, self.size_bytes)
        return {name: way for name, way in found.items() if self._has(way)}

    def whole(self, size_bytes: int) -> tuple[Mover, Move]:
        """One copy of so many bytes: the most that any way can reach. Raises DriverError."""
        layout = BlockLayout.of([(0, size_bytes, size_bytes)], 1)
        way = CopierMover(self.driver, layout, self.address, method="each")
        return way, Move(np.zeros(1, np.int64), np.array([self.host_address], np.uint64))

    def move(self, block_bytes: int, count: int) -> Move:
        """So many blocks, all over the memory and in no order on either side; always the same."""
        slots = self.size_bytes // block_bytes
        chooser = np.random.default_rng(block_bytes * 65537 + count)
        blocks = chooser.choice(slots, count, replace=False).astype(np.int64)
        rows = chooser.choice(slots, count, replace=False).astype(np.uint64)
        return Move(blocks, np.uint64(self.host_address) + rows * np.uint64(block_bytes))

    def check(self, ways: Mapping[str, Mover], move: Move) -> None:
        """What goes to the device and comes back in another order is what it was.

        Looks at the first 16 MiB at most. Raises GpupoolError if it is not.
        """
        for name, way in ways.items():
            words = way.row_bytes // _WORD_BYTES
            count = max(1, min(len(move.blocks), _CHECKED_BYTES // way.row_bytes))
            blocks, rows = move.blocks[:count], move.rows[:count]
            pinned = (ctypes.c_char * self.size_bytes).from_address(self.host_address)
            host = np.frombuffer(memoryview(pinned), np.uint64)
            first = ((rows - np.uint64(self.host_address)) // np.uint64(_WORD_BYTES)).astype(int)
            places = first[:, None] + np.arange(words)
            stamps = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            host[places] = stamps
            way.to_device(blocks, rows)
            way.synchronize()
            host[places] = 0
            way.to_host(blocks[::-1].copy(), rows)
            way.synchronize()
            if not np.array_equal(host[places], stamps[::-1]):
                raise GpupoolError(
                    f"{name}: blocks of {way.row_bytes} bytes arrived with other bytes than they "
                    "left with"
                )

    def _has(self, way: Mover) -> bool:
        try:
            way.to_host(np.zeros(1, np.int64), np.array([self.host_address], np.uint64))
            way.synchronize()
        except DriverError as error:
            if error.status != NOT_SUPPORTED:
                raise
            return False
        return True


@contextmanager
def open_bench(device: str, most_bytes: int) -> Iterator[Bench]:
    """Room for moves of at most so many bytes: twice that, so that blocks are not all neighbours.

    What was made in it must be gone when it ends. Raises what opening a device does.
    """
    room_bytes = -(-2 * most_bytes // _PAGE_BYTES) * _PAGE_BYTES
    with closing(Pool(device=device, budget_bytes=room_bytes, page_bytes=_PAGE_BYTES)) as pool:
        model = pool.model("measured")
        region = model.region("workspace", room_bytes)
        pinned = pool.slabs([room_bytes], slab_bytes=room_bytes, slabs_max=1, pinned=True)
        handle = pinned.allocate(room_bytes)
        try:
            with model.resident():
                address = pinned.address_of(handle)
                yield Bench(pool.driver, region.address, address, room_bytes)
        finally:
            pinned.free(handle)
