"""The kernels against the reference: every byte of all memory around, after each move."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_worlds import World, block_lists, rows_of, settings_for, worlds

from gpupool.kernels import reference

SETTINGS = settings_for(700)


def expected_around(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of the memory around the blocks, and the blocks in it."""
    around = world.around_blocks.clone()
    begin = world.blocks.storage_offset()
    return around, around[begin : begin + world.blocks.numel()]


@SETTINGS
@given(worlds(), st.data())
def test_gather(cases: Counter[str], world: World, data: st.DataObject) -> None:
    ids = data.draw(block_lists(world.layout.blocks))
    rows, places = data.draw(rows_of(world, len(ids)))
    blocks_before = world.around_blocks.clone()
    expected = world.around_rows.clone()
    for place, row in zip(places, reference.gather(world.blocks, world.layout, ids), strict=True):
        begin = place.storage_offset()
        expected[begin : begin + len(row)] = row
    world.mover.gather(ids, rows)
    assert torch.equal(world.around_rows, expected)
    assert torch.equal(world.around_blocks, blocks_before)
    cases["gather"] += 1


@SETTINGS
@given(worlds(), st.data())
def test_scatter(cases: Counter[str], world: World, data: st.DataObject) -> None:
    ids = data.draw(block_lists(world.layout.blocks))
    rows, places = data.draw(rows_of(world, len(ids)))
    rows_before = world.around_rows.clone()
    around, blocks = expected_around(world)
    if ids:
        reference.scatter(blocks, world.layout, ids, torch.stack(places))
    world.mover.scatter(ids, rows)
    assert torch.equal(world.around_blocks, around)
    assert torch.equal(world.around_rows, rows_before)
    cases["scatter"] += 1


@SETTINGS
@given(worlds(), st.data())
def test_copy(cases: Counter[str], world: World, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(world.layout.blocks)))
    targets = order[: data.draw(st.integers(0, len(order) - 1))]
    others = st.sampled_from(order[len(targets) :])
    sources = [data.draw(others) for _ in targets]
    around, blocks = expected_around(world)
    reference.copy(blocks, world.layout, sources, targets)
    world.mover.copy(sources, targets)
    assert torch.equal(world.around_blocks, around)
    cases["copy"] += 1
