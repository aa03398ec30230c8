"""Layouts, against sets of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpupool.errors import UsageError
from gpupool.kernels.layout import BlockLayout

Pieces = list[tuple[int, int, int]]
SMALL = st.integers(1, 9)
PIECES = st.lists(st.tuples(st.integers(0, 40), SMALL, SMALL), min_size=1, max_size=4)
MANY = settings(max_examples=1000, deadline=None)


def bytes_of(piece: tuple[int, int, int], block: int) -> set[int]:
    offset, stride, size = piece
    return set(range(offset + block * stride, offset + block * stride + size))


def all_bytes(pieces: Pieces, blocks: int) -> list[int]:
    return [at for piece in pieces for block in range(blocks) for at in bytes_of(piece, block)]


@MANY
@given(PIECES, st.integers(1, 5))
@example([(0, 4, 2), (6, 4, 2)], 5)  # of equal stride, between each other
@example([(0, 3, 1), (20, 7, 2)], 5)  # of unequal strides, which never meet in the first blocks
def test_pieces_that_share_bytes_are_refused(pieces: Pieces, blocks: int) -> None:
    every = all_bytes(pieces, blocks)
    try:
        layout = BlockLayout.of(pieces, blocks)
    except UsageError as error:
        assert len(set(every)) < len(every)
        assert "share bytes" in str(error) or "they overlap" in str(error)
        return
    assert len(set(every)) == len(every)
    assert layout.extent_bytes == max(every) + 1
    assert layout.row_bytes == sum(size for _, _, size in pieces)


@MANY
@given(PIECES, st.integers(1, 5))
def test_merged_pieces_are_the_same_bytes(pieces: Pieces, blocks: int) -> None:
    try:
        layout = BlockLayout.merged(pieces, blocks)
    except UsageError:
        # Only where different blocks share bytes, or strides differ.
        own = [set().union(*(bytes_of(p, b) for p in pieces)) for b in range(blocks)]
        apart = len(set().union(*own)) == sum(map(len, own))
        strides = {stride for _, stride, _ in pieces}
        assert not apart or len(strides) > 1 or blocks == 1
        return
    merged = [(p.offset, p.stride, p.bytes) for p in layout.pieces]
    assert len(merged) <= len(pieces)
    for block in range(blocks):
        assert set().union(*(bytes_of(p, block) for p in merged)) == set().union(
            *(bytes_of(p, block) for p in pieces)
        )


@given(PIECES, st.integers(1, 3), st.sampled_from([1, 2, 16]))
def test_tiles_are_the_row(pieces: Pieces, blocks: int, tile_bytes: int) -> None:
    try:
        layout = BlockLayout.of(pieces, blocks)
    except UsageError:
        return
    at = 0
    found = []
    for tile in layout.tiles(tile_bytes):
        assert tile.row_offset == at
        assert 0 < tile.bytes <= tile_bytes
        at += tile.bytes
        found += range(tile.offset, tile.offset + tile.bytes)
    assert at == layout.row_bytes
    assert found == [byte for offset, _, size in pieces for byte in range(offset, offset + size)]


@pytest.mark.parametrize(
    ("pieces", "blocks", "message"),
    [
        ([], 1, "no pieces"),
        ([(0, 8, 8)], 0, "the number of blocks is 0"),
        ([(0, 8, 8)], -1, "the number of blocks is -1"),
        ([(0, 8, 8)], 1.0, "not a whole number"),
        ([(0, 8, 8)], True, "not a whole number"),
        ([(-1, 8, 8)], 1, "the offset of piece 0 is -1"),
        ([(0, 8, 8), (8, 0, 8)], 1, "the stride of piece 1 is 0"),
        ([(0, -8, 8)], 1, "the stride of piece 0 is -8"),
        ([(0, 8, 0)], 1, "the size of piece 0 is 0"),
        ([(0, 8, -8)], 1, "the size of piece 0 is -8"),
        ([(0, 8, "8")], 1, "not a whole number"),
        ([(1 << 63, 8, 8)], 1, "below 2"),
        ([((1 << 63) - 8, 8, 8)], 1, "64-bit addresses"),
        ([(0, 1 << 62, 8)], 3, "64-bit addresses"),
        ([(0, 8, 9)], 2, "they overlap"),
        ([(0, 8, 8), (7, 8, 8)], 1, "pieces 0 and 1 share bytes"),
    ],
)
def test_what_is_no_layout_is_refused(pieces: Any, blocks: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BlockLayout.of(pieces, blocks)


def test_a_large_layout_is_checked_soon() -> None:
    # 2 x 80 layers between each other, and as many apart, of 100,000 blocks.
    page, blocks = 32768, 100_000
    one_buffer = [(i * page, 160 * page, page) for i in range(160)]
    assert BlockLayout.of(one_buffer, blocks).extent_bytes == 160 * page * blocks
    assert len(BlockLayout.merged(one_buffer, blocks).pieces) == 1
    layers = [(i * page * blocks, page, page) for i in range(160)]
    assert len(BlockLayout.merged(layers, blocks).pieces) == 160


def test_layouts_of_vllm() -> None:
    """What the worker tells of an engine of one buffer, of keys and values, and of a hybrid."""
    interface = pytest.importorskip("vllm.v1.kv_cache_interface")
    torch = pytest.importorskip("torch")
    from gpupool.vllm.compat import block_layout

    full = interface.FullAttentionSpec(
        block_size=16, num_kv_heads=2, head_size=8, dtype=torch.float16
    )
    window = interface.SlidingWindowSpec(
        block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float16, sliding_window=64
    )
    page, blocks = full.page_size_bytes, 10
    stride = 2 * page

    def config(tensors: list[Any], specs: list[Any]) -> Any:
        groups = [
            interface.KVCacheGroupSpec(
                [layer for t in tensors for layer in t.layers if layer.startswith(name)], spec
            )
            for name, spec in specs
        ]
        return interface.KVCacheConfig(blocks, tensors, groups)

    tensor = interface.KVCacheTensor
    by_layer = config([tensor(blocks * stride, ["f0", "f1"], page * blocks, page)], [("f", full)])
    layout, dtype = block_layout(by_layer, blocks * stride)
    assert dtype == "float16"
    assert [(p.offset, p.stride, p.bytes) for p in layout.pieces] == [
        (0, page, page),
        (page * blocks, page, page),
    ]
    hybrid = config(
        [
            tensor(blocks * stride, ["f0", "f1"], page, stride),
            tensor(blocks * stride, ["w0", "w1", "w2"], page // 2, stride),
        ],
        [("f", full), ("w", window)],
    )
    layout, _ = block_layout(hybrid, blocks * stride)
    assert [(p.offset, p.stride, p.bytes) for p in layout.pieces] == [(0, stride, stride)]
    pieces = [(0, stride, page), (page, stride, page), (page // 2, stride, page // 2)]
    with pytest.raises(UsageError, match="merged"):
        BlockLayout.of(pieces, blocks)
    state = interface.MambaSpec(block_size=16, shapes=((4, 4),), dtypes=(torch.float16,))
    mixed = config(
        [
            tensor(blocks * stride, ["f0"], page, stride),
            tensor(blocks * stride, ["s0"], page, stride),
        ],
        [("f", full), ("s", state)],
    )
    assert block_layout(mixed, blocks * stride) is None  # not in blocks of tokens
