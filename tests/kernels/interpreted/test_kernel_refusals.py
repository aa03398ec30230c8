"""What is refused before anything is launched, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from kernel_worlds import World, rows_of, settings_for, worlds

from gpupool.errors import UsageError
from gpupool.kernels.layout import BlockLayout
from gpupool.kernels.memory import RowsAt
from gpupool.kernels.move import BlockMover

LAYOUT = BlockLayout.of([(0, 40, 24), (200, 16, 16)], 4)
ROW = LAYOUT.row_bytes
Move = Callable[[BlockMover, Any, Any], None]
GATHER, SCATTER, COPY = BlockMover.gather, BlockMover.scatter, BlockMover.copy


class Memory:
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.whole = torch.randint(0, 256, (1024,), dtype=torch.uint8, generator=generator)
        self.before = self.whole.clone()
        self.blocks = self.whole[: LAYOUT.extent_bytes]
        self.rows = self.whole[512:1024]
        self.mover = BlockMover(LAYOUT, self.blocks)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def refused(memory: Memory, move: Move, first: Any, second: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        move(memory.mover, first, second)
    assert torch.equal(memory.whole, memory.before)


@pytest.mark.parametrize("move", [GATHER, SCATTER])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2, 1, 2], "block 2 is named twice"),
        ([0] * 4, "block 0 is named twice"),
        ([4], "there is no block 4: they are 0 to 3"),
        ([0, -1], "there is no block -1"),
        ([1 << 62], "there is no block"),
        ([1 << 63], "whole numbers of 64 bits"),
        ([1.0], "list of whole numbers"),
        ([True], "list of whole numbers"),
        ([[0, 1]], "list of whole numbers"),
        (["1"], "whole numbers of 64 bits"),
        (torch.tensor([1], dtype=torch.uint64), "list of whole numbers"),
        (torch.empty(1, dtype=torch.int64, device="meta"), "checked on the host"),
    ],
)
def test_wrong_blocks(memory: Memory, move: Move, ids: Any, message: str) -> None:
    refused(memory, move, ids, memory.rows, message)


@settings_for(100)
@given(worlds(), st.data())
def test_a_repeated_block_is_refused_wherever_it_is(world: World, data: st.DataObject) -> None:
    assume(world.layout.blocks > 1)
    ids = data.draw(st.permutations(range(world.layout.blocks)))
    ids = ids[: data.draw(st.integers(1, len(ids) - 1))]
    ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from(ids)))
    rows, _ = data.draw(rows_of(world, len(ids)))
    around_blocks, around_rows = world.around_blocks.clone(), world.around_rows.clone()
    for move in (GATHER, SCATTER):
        with pytest.raises(UsageError, match="is named twice"):
            move(world.mover, ids, rows)
    other = next(block for block in range(world.layout.blocks) if block not in ids)
    with pytest.raises(UsageError, match="is named twice"):
        world.mover.copy([other] * len(ids), ids)
    assert torch.equal(world.around_blocks, around_blocks)
    assert torch.equal(world.around_rows, around_rows)


@pytest.mark.parametrize("move", [GATHER, SCATTER])
def test_wrong_rows(memory: Memory, move: Move) -> None:
    at = memory.rows.data_ptr()
    blocks_at = memory.blocks.data_ptr()
    end = blocks_at + LAYOUT.extent_bytes
    for rows, message in (
        (memory.rows[: 2 * ROW - 1], f"2 rows of {ROW} bytes need {2 * ROW}, and the slab has"),
        (memory.rows[::2], "gaps"),
        (torch.empty(2 * ROW, device="meta"), "cannot reach a tensor on meta"),
        ((at, -1), "not within 64-bit"),
        ((-1, 2 * ROW), "not within 64-bit"),
        (((1 << 63) - 2 * ROW, 2 * ROW), "not within 64-bit"),
        ((at, 80.0), "whole numbers"),
        (RowsAt([at]), "2 blocks need as many rows, not 1"),
        (RowsAt([at, -1]), "not within 64-bit"),
        (RowsAt([at, (1 << 63) - ROW]), "not within 64-bit"),
        (RowsAt([at, 0.5]), "list of whole numbers"),
        (RowsAt([at, end - 1]), "in the memory of the blocks"),
        (RowsAt([at, blocks_at - ROW + 1]), "in the memory of the blocks"),
        ((end - 1, 2 * ROW), "in the memory of the blocks"),
    ):
        refused(memory, move, [0, 1], rows, message)


def test_rows_that_touch_are_no_overlap(memory: Memory) -> None:
    at = memory.rows.data_ptr()
    for distance in range(-ROW + 1, ROW):
        rows = RowsAt([at + 2 * ROW, at + 2 * ROW + distance])
        refused(memory, GATHER, [0, 1], rows, "begins within another")
    memory.mover.gather([0, 1], RowsAt([at + ROW, at]))
    expected = [
        torch.cat([memory.blocks[40 * b :][:24], memory.blocks[200 + 16 * b :][:16]])
        for b in (1, 0)
    ]
    assert torch.equal(memory.rows[: 2 * ROW], torch.cat(expected))


def test_rows_beside_the_blocks(memory: Memory) -> None:
    end = memory.blocks.data_ptr() + LAYOUT.extent_bytes
    memory.mover.gather([3], (end, ROW))
    assert torch.equal(memory.whole[: LAYOUT.extent_bytes], memory.before[: LAYOUT.extent_bytes])


def test_one_row_into_several_blocks(memory: Memory) -> None:
    at = memory.rows.data_ptr()
    memory.mover.scatter([0, 2], RowsAt([at, at]))
    for block in (0, 2):
        assert torch.equal(memory.blocks[40 * block :][:24], memory.rows[:24])


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ([0, 1], [2, 2], "block 2 is named twice"),
        ([0, 1], [1, 2], "block 1 is both read and written"),
        ([3], [3], "block 3 is both read and written"),
        ([0, 1], [2], "2 blocks cannot be copied into 1"),
        ([], [2], "0 blocks cannot be copied into 1"),
        ([4], [2], "no block 4"),
        ([0], [-1], "no block -1"),
    ],
)
def test_wrong_copies(memory: Memory, sources: Any, targets: Any, message: str) -> None:
    refused(memory, COPY, sources, targets, message)


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        (torch.zeros(LAYOUT.extent_bytes - 1, dtype=torch.uint8), {}, "reaches over"),
        ((4096, LAYOUT.extent_bytes), {}, "does not say its device"),
        ((4096, LAYOUT.extent_bytes, 1), {"device": "cpu"}, "address, bytes"),
        (torch.zeros(512), {"device": "cuda"}, "the blocks are on cpu"),
        ((4096, 4096), {"device": "meta"}, "run on CUDA devices"),
        (torch.zeros(512), {"device": "cpu:1"}, "the blocks are on cpu, not on cpu:1"),
        (torch.zeros(512), {"programs": 0}, "at least 1"),
        (torch.zeros(512), {"tile_bytes": 8}, "power of 2"),
        (torch.zeros(512), {"tile_bytes": 48}, "power of 2"),
    ],
)
def test_wrong_memory(blocks: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BlockMover(LAYOUT, blocks, **options)
