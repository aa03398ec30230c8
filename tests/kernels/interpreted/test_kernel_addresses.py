"""Addresses and offsets beyond 32 bits, in sparse memory; only what was written is there after."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from gpupool.kernels import reference
from gpupool.kernels.digest import digest_runs, unsigned
from gpupool.kernels.layout import BlockLayout
from gpupool.kernels.memory import RowsAt
from gpupool.kernels.move import BlockMover

GIB = 1 << 30
PAGE = mmap.PAGESIZE


@dataclass
class Sparse:
    """Zeros, which take memory where they are touched."""

    fd: int
    memory: torch.Tensor

    def touched(self) -> set[int]:
        """The numbers of the pages that take memory."""
        pages: set[int] = set()
        at = 0
        while True:
            try:
                begin = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing from here on
                return pages
            at = os.lseek(self.fd, begin, os.SEEK_HOLE)
            pages |= set(range(begin // PAGE, -(-at // PAGE)))

    def pages_of(self, runs: list[tuple[int, int]]) -> set[int]:
        return {p for at, size in runs for p in range(at // PAGE, (at + size - 1) // PAGE + 1)}


@pytest.fixture
def sparse() -> Iterator[Sparse]:
    size = 24 * GIB
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, size)
    mapped = mmap.mmap(fd, size)
    yield Sparse(fd, torch.frombuffer(mapped, dtype=torch.uint8))
    os.close(fd)  # the mapping goes with the last tensor


LAYOUTS = {
    "offset": BlockLayout.of([(5 * GIB + 16, 64, 48), (9 * GIB + 1, 64, 21)], 4),
    "stride": BlockLayout.of([(32, 3 * GIB + 16, 64), (4096, 3 * GIB + 64, 33)], 4),
    "stride of one byte more than 32 bits": BlockLayout.of([(0, 4 * GIB + 1, 40)], 4),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_wider_than_32_bits(sparse: Sparse, layout: BlockLayout) -> None:
    rows_at = 20 * GIB + 48
    ids = [3, 1]
    rows = sparse.memory[rows_at : rows_at + 2 * layout.row_bytes]
    wanted = torch.arange(1, 2 * layout.row_bytes + 1, dtype=torch.uint8)
    rows.copy_(wanted)
    mover = BlockMover(layout, sparse.memory[: layout.extent_bytes], programs=2)

    def runs(blocks: list[int]) -> list[tuple[int, int]]:
        return [(p.offset + b * p.stride, p.bytes) for p in layout.pieces for b in blocks]

    mover.scatter(ids, rows)
    expected = sparse.pages_of([(rows_at, 2 * layout.row_bytes), *runs(ids)])
    assert sparse.touched() == expected
    assert torch.equal(
        reference.gather(sparse.memory, layout, ids), wanted.view(2, layout.row_bytes)
    )
    rows.zero_()
    mover.gather(ids, RowsAt([rows.data_ptr(), rows.data_ptr() + layout.row_bytes]))
    assert torch.equal(rows, wanted)
    assert sparse.touched() == expected
    mover.copy(ids, [0, 2])
    assert torch.equal(
        reference.gather(sparse.memory, layout, [0, 2]), wanted.view(2, layout.row_bytes)
    )
    assert sparse.touched() == expected | sparse.pages_of(runs([0, 2]))


def test_digests_far_away(sparse: Sparse) -> None:
    near, far = sparse.memory[7:1003], sparse.memory[23 * GIB + 7 : 23 * GIB + 1003]
    far.copy_(torch.arange(996) % 251)
    near.copy_(far)
    near[0] += 1
    one, other = unsigned(digest_runs([near, far], "cpu"))
    assert (one, other) == (reference.digest(near), reference.digest(far))
    assert one != other
