"""Random layouts, memory around them, and lists of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from gpupool.kernels.layout import BlockLayout
from gpupool.kernels.memory import Rows, RowsAt
from gpupool.kernels.move import BlockMover

MARGIN = 64


def settings_for(examples: int) -> settings:
    """The same examples every time; not shrunk, which takes the interpreter minutes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


# Most are small, since the interpreter is slow; of 16 and no multiple of it, of 4 and none.
SIZES = st.sampled_from([1, 4, 15, 16, 20, 32, 33, 48, 64]) | st.integers(1, 70)
GAPS = st.sampled_from([0, 0, 16]) | st.integers(0, 20)
BLOCKS = st.sampled_from([1, 2, 3, 4] * 3 + [17, 40])

Pieces = list[tuple[int, int, int]]


@st.composite
def one_tensor_per_layer(draw: st.DrawFn) -> tuple[Pieces, int]:
    """Anywhere, with room between blocks: padded pages, or other tensors."""
    blocks, at, pieces = draw(BLOCKS), draw(GAPS), []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(SIZES)
        stride = size + draw(GAPS)
        pieces.append((at, stride, size))
        at += blocks * stride + draw(GAPS)
    return draw(st.permutations(pieces)), blocks


@st.composite
def one_buffer(draw: st.DrawFn) -> tuple[Pieces, int]:
    """Each block has the pages of all layers, perhaps of unequal sizes, one behind the other."""
    blocks, sizes = draw(BLOCKS), draw(st.lists(SIZES, min_size=1, max_size=3))
    stride = sum(sizes) + draw(GAPS)
    return [(sum(sizes[:i]), stride, size) for i, size in enumerate(sizes)], blocks


@st.composite
def keys_and_values_apart(draw: st.DrawFn) -> tuple[Pieces, int]:
    """(2, blocks, ...): the values of all blocks behind the keys of all."""
    blocks, size, pieces = draw(BLOCKS), draw(SIZES), []
    for layer in range(draw(st.integers(1, 2))):
        first = 2 * layer * blocks * size
        pieces += [(first, size, size), (first + blocks * size, size, size)]
    return pieces, blocks


@st.composite
def heads_outermost(draw: st.DrawFn) -> tuple[Pieces, int]:
    """(heads, blocks, tokens, ...): a block has a piece for each head."""
    blocks, size, heads = draw(BLOCKS), draw(SIZES), draw(st.integers(1, 3))
    return [(head * blocks * size, size, size) for head in range(heads)], blocks


@st.composite
def groups_over_each_other(draw: st.DrawFn) -> tuple[Pieces, int]:
    """A hybrid model: two groups of layers of unequal pages share the bytes of each block."""
    blocks = draw(BLOCKS)
    groups = draw(st.lists(st.lists(SIZES, min_size=1, max_size=2), min_size=2, max_size=2))
    stride = max(sum(sizes) for sizes in groups)
    pieces = [(sum(sizes[:i]), stride, size) for sizes in groups for i, size in enumerate(sizes)]
    return pieces, blocks


@st.composite
def large_pages(draw: st.DrawFn) -> tuple[Pieces, int]:
    """More than a program moves at once, on any path."""
    size = draw(st.sampled_from([1025, 2048 + 12, 8192, 2 * 8192 + 27]))
    return [(0, size + draw(GAPS), size)], draw(st.integers(1, 2))


LAYOUTS = st.one_of(
    large_pages().map(lambda drawn: BlockLayout.of(*drawn)),
    one_tensor_per_layer().map(lambda drawn: BlockLayout.of(*drawn)),
    one_buffer().map(lambda drawn: BlockLayout.of(*drawn)),
    one_buffer().map(lambda drawn: BlockLayout.merged(*drawn)),
    keys_and_values_apart().map(lambda drawn: BlockLayout.of(*drawn)),
    heads_outermost().map(lambda drawn: BlockLayout.of(*drawn)),
    groups_over_each_other().map(lambda drawn: BlockLayout.merged(*drawn)),
)


@dataclass
class World:
    """Memory of the blocks, and of rows, each with a margin that nothing may write to."""

    layout: BlockLayout
    around_blocks: torch.Tensor
    around_rows: torch.Tensor
    blocks: torch.Tensor
    mover: BlockMover


@st.composite
def worlds(draw: st.DrawFn) -> World:
    layout = draw(LAYOUTS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 32)))
    # torch's memory is aligned to 64 bytes, and so the blocks are off by what is drawn.
    before = MARGIN + draw(st.sampled_from([0, 0, 4, 1, 8]))

    def some_bytes(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)

    around = some_bytes(before + layout.extent_bytes + MARGIN)
    row = layout.row_bytes
    blocks = around[before : before + layout.extent_bytes]
    mover = BlockMover(
        layout,
        blocks if draw(st.booleans()) else (blocks.data_ptr(), blocks.nbytes),
        device="cpu",
        programs=draw(st.integers(1, 4)),
        tile_bytes=draw(st.sampled_from([32, 64, 8192] if row < 1024 else [2048, 8192])),
    )
    rows = some_bytes(2 * MARGIN + layout.blocks * (layout.row_bytes + 24) + 24)
    return World(layout, around, rows, blocks, mover)


def block_lists(blocks: int) -> st.SearchStrategy[list[int]]:
    """None, one, all, or some of them, in any order."""
    ids = st.permutations(range(blocks))
    return st.one_of(
        st.just([]),
        st.integers(0, blocks - 1).map(lambda block: [block]),
        ids,
        st.tuples(ids, st.integers(0, blocks)).map(lambda drawn: drawn[0][: drawn[1]]),
    )


@st.composite
def rows_of(draw: st.DrawFn, world: World, count: int) -> tuple[Rows, list[torch.Tensor]]:
    """Rows for so many blocks, and the bytes of each as a tensor."""
    row_bytes = world.layout.row_bytes
    at = MARGIN + draw(st.sampled_from([0, 0, 4, 1]))
    memory = world.around_rows
    if draw(st.booleans()):
        slab = memory[at : at + count * row_bytes]
        rows: Rows = slab if draw(st.booleans()) else (slab.data_ptr(), slab.nbytes)
        return rows, list(slab.view(count, row_bytes)) if count else []
    places = []
    for _ in range(count):
        places.append(memory[at : at + row_bytes])
        at += row_bytes + draw(GAPS)
    places = draw(st.permutations(places))
    return RowsAt([place.data_ptr() for place in places]), places
