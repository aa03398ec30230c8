"""A byte of a saved block that is not what it was is found before a step reads it."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_pair import LAYOUT, PAGE_BYTES, two
from kv_world import BLOCKS, World, flip

from gpupool import Pool
from gpupool._core import FaultPlan, Verify
from gpupool.errors import DamagedMemoryError
from gpupool.kv.digests import SAMPLED_ONE_IN
from gpupool.kv.paged import PagedKv

SOME = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=8, unique=True)
SEEDS = st.integers(0, 2**32)


def verified(seed: int, *, verify: Verify = Verify.always, stepped: bool = True) -> World:
    world = World(seed, verify=verify, stepped=stepped)
    world.swap_in()
    return world


@pytest.mark.parametrize("stepped", [True, False])
@settings(max_examples=60, deadline=None)
@given(SEEDS, SOME, SOME, st.data())
def test_a_bit_flipped_in_a_copy_is_found(
    stepped: bool, seed: int, blocks: list[int], first: list[int], data: st.DataObject
) -> None:
    world = verified(seed, stepped=stepped)
    world.write(blocks)
    world.swap_out()
    bits = st.integers(0, 8 * world.layout.row_bytes - 1)
    flipped = data.draw(st.dictionaries(st.sampled_from(blocks), bits))
    for block, bit in flipped.items():
        flip(world.row_of(block), bit)
    world.swap_in(first)
    for block in data.draw(st.permutations(blocks)):
        if block in flipped:
            for _ in range(2):  # and every time
                with pytest.raises(DamagedMemoryError, match=f"KV block {block} of 'a'"):
                    world.read([block])
        else:
            world.read([block])
    if flipped:
        with pytest.raises(DamagedMemoryError):
            world.write(blocks)  # what a step adds to
    world.cache.drain()
    assert world.cache.statistics().away == len(flipped)
    assert world.cache.statistics().bytes_recopied == 0
    for block, bit in flipped.items():
        flip(world.row_of(block), bit)
    world.swap_out()
    world.finish()  # in which all come back as they were


@settings(max_examples=40, deadline=None)
@given(SEEDS, SOME)
def test_a_transfer_that_goes_wrong_once_is_made_again(seed: int, blocks: list[int]) -> None:
    world = verified(seed)
    world.write(blocks)
    world.swap_out()
    undo = world.slip(set(blocks), times=1)
    world.swap_in()
    world.read(blocks)
    undo()
    recopied = world.cache.statistics().bytes_recopied
    assert 0 < recopied <= len(blocks) * world.layout.row_bytes
    world.finish()


@settings(max_examples=40, deadline=None)
@given(SEEDS, SOME)
def test_a_transfer_that_goes_wrong_twice_is_damage(seed: int, blocks: list[int]) -> None:
    world = verified(seed)
    world.write(blocks)
    world.swap_out()
    undo = world.slip({blocks[0]}, times=1000)
    world.swap_in(blocks)
    with pytest.raises(DamagedMemoryError, match=f"KV block {blocks[0]} of"):
        world.read(blocks)
    world.read(blocks[1:])
    undo()
    world.swap_out()
    world.finish()


def test_another_block_in_its_place_is_found() -> None:
    """As where rows are mixed up, each of which is whole."""
    for seed in range(20):
        world = verified(seed)
        world.write([1, 2])
        world.swap_out()
        one, other = world.row_of(1), world.row_of(2)
        size = world.layout.row_bytes
        content = ctypes.string_at(one, size)
        ctypes.memmove(one, ctypes.string_at(other, size), size)
        ctypes.memmove(other, content, size)
        world.swap_in()
        with pytest.raises(DamagedMemoryError, match=r"KV block 1( and 1 more)? of 'a'"):
            world.read([1, 2])
        world.forget([1, 2])
        world.finish()


def test_pieces_in_each_others_place_are_found() -> None:
    found = 0
    for seed in range(40):
        world = verified(seed)
        sizes = [piece.bytes for piece in world.layout.pieces]
        world.write([3])
        if len(sizes) > 1 and sizes[0] == sizes[1]:
            at = [world.region.address + p.offset + 3 * p.stride for p in world.layout.pieces]
            ctypes.memset(at[0], 1, sizes[0])
            ctypes.memset(at[1], 2, sizes[1])
            world.swap_out()
            row = world.row_of(3)
            ctypes.memset(row, 2, sizes[0])
            ctypes.memset(row + sizes[0], 1, sizes[1])
            world.swap_in()
            with pytest.raises(DamagedMemoryError):
                world.read([3])
            found += 1
        world.forget([3])
        world.finish()
    assert found > 3


def test_what_is_forgotten_is_damaged_no_more() -> None:
    for seed in range(20):
        world = verified(seed)
        world.write([1, 2])
        world.swap_out()
        flip(world.row_of(1), 5)
        world.swap_in()
        with pytest.raises(DamagedMemoryError):
            world.read([1, 2])
        assert not world.cache.settled
        world.forget([1])
        world.read([1, 2])
        assert world.cache.settled
        world.write([1])  # another request's
        world.swap_out()
        world.finish()


def test_a_sample_looks_at_each_block_in_turn() -> None:
    world = verified(3, verify=Verify.sample)
    world.write(list(range(BLOCKS)))
    world.swap_out()
    found: dict[int, list[int]] = {5: [], 6: []}
    before = world.cache.statistics().bytes_verified
    for turn in range(2 * SAMPLED_ONE_IN):
        flipped = 5 + turn // SAMPLED_ONE_IN
        flip(world.row_of(flipped), turn)
        world.swap_in()
        world.cache.drain()
        for block in range(BLOCKS):
            try:
                world.cache.require([block])
            except DamagedMemoryError:
                assert block == flipped
                found[block].append(turn)
        flip(world.row_of(flipped), turn)
        world.swap_out()
    looked = (world.cache.statistics().bytes_verified - before) // world.layout.row_bytes
    assert [len(turns) for turns in found.values()] == [1, 1]
    assert looked == 2 * BLOCKS - 2  # each block once in 16 turns
    world.finish()


def test_off_makes_no_digest() -> None:
    world = verified(4, verify=Verify.off)
    world.write([1, 2])
    world.swap_out()
    world.swap_in()
    world.read([1, 2])
    assert world.calls("digest_runs") == 0
    assert world.cache.statistics().bytes_verified == 0
    world.finish()


@pytest.mark.parametrize("stepped", [True, False])
def test_what_is_right_is_never_called_wrong(stepped: bool) -> None:
    """Written over, forgotten and given out anew while moves are under way."""
    verified_bytes = 0
    for seed in range(40):
        chooser = random.Random(seed)
        world = verified(seed, stepped=stepped)
        for _ in range(30):
            blocks = chooser.sample(range(BLOCKS), 5)
            action = chooser.choice([world.write, world.read, world.forget, None])
            if action is not None:
                action(blocks)
            else:
                world.swap_out()
                world.swap_in(blocks)
        statistics = world.cache.statistics()
        assert statistics.bytes_recopied == 0
        verified_bytes += statistics.bytes_verified
        world.finish()
    assert verified_bytes > 0


# A model and its steps.


def test_a_swap_in_with_a_damaged_block_of_its_step_fails_and_leaves_the_model_out() -> None:
    with two(None, FaultPlan()) as (a, b):
        a.step(random.Random(1))
        b.step(random.Random(1))  # a is out
        block = min(a.content)
        row = int(a.kv.cache._store.addresses(np.array([block]), a.kv.cache._identity)[0])
        flip(row, 77)
        for _ in range(2):  # and again
            a.kv.bring_first([block])
            with (
                pytest.raises(DamagedMemoryError, match=f"^model 'a': KV block {block} of 'a'"),
                a.model.resident(),
            ):
                raise AssertionError("a step began")
            assert not a.model.gate.is_resident
            assert not a.model._residency.torn
        b.check()  # which has the pages
        a.kv.bring_first([block])
        flip(row, 77)
        a.check()


@pytest.mark.parametrize("verify", ["always", "sample", "off"])
def test_blocks_are_verified_as_their_model_is(verify: str) -> None:
    pool = Pool(device="host", budget_bytes=PAGE_BYTES, page_bytes=PAGE_BYTES)
    model = pool.model("a", verify=verify)
    kv = PagedKv(model, LAYOUT, region_bytes=PAGE_BYTES, dtype="int8")
    with model.resident():
        kv.write(range(32))
    model.swap_out()
    kv.bring_first(range(32))
    with model.resident():
        if verify != "off":  # what the step reads is there as it begins
            assert kv.cache.statistics().coming == kv.cache.statistics().away == 0
        kv.require(range(32))
    looked = {"always": 32, "sample": 2, "off": 0}[verify]
    assert kv.cache.statistics().bytes_verified == looked * LAYOUT.row_bytes
    pool.close()


def test_a_step_with_a_damaged_block_that_comes_behind_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with two(None, FaultPlan()) as (a, b):
        told: list[str] = []
        monkeypatch.setattr(a.model._session, "damaged", told.append)
        with a.model.resident():
            a.kv.write([3, 5])
            for block in (3, 5):
                a.content[block] = 1
                a._put(block)
        b.step(random.Random(1))
        row = int(a.kv.cache._store.addresses(np.array([3]), a.kv.cache._identity)[0])
        flip(row, 8 * LAYOUT.row_bytes - 1)
        a.kv.bring_first([5])
        with a.model.resident():
            a.kv.require([5])  # a step of another request
            for needs in (a.kv.require, a.kv.write):
                with pytest.raises(DamagedMemoryError, match="KV block 3 of 'a'"):
                    needs([3, 5])
        assert len(told) == 2
        a.model.swap_out()  # it can leave as ever
        b.check()
        flip(row, 8 * LAYOUT.row_bytes - 1)
        a.check()
