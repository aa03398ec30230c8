"""What the cache does when two things happen at once, and what it refuses."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
from kv_world import BLOCKS, World

from gpupool.errors import KvStoreFullError, UsageError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.cache import KvCache
from gpupool.kv.mover import CopierMover
from gpupool.kv.moves import MoveList


class Meeting:
    """A mark of a mover, with something that happens while it is waited for."""

    def __init__(self, mark: object, happens: list[Callable[[], None]]) -> None:
        self._mark, self._happens = mark, happens

    def done(self) -> bool:
        return self._mark.done()  # type: ignore[attr-defined,no-any-return]

    def wait(self) -> None:
        while self._happens:
            self._happens.pop()()
        self._mark.wait()  # type: ignore[attr-defined]


def meeting(world: World) -> list[Callable[[], None]]:
    happens: list[Callable[[], None]] = []
    mark = world.cache._mover.mark
    world.cache._mover.mark = lambda: Meeting(mark(), happens)
    return happens


def whole(seed: int, *, rows: int = BLOCKS) -> World:
    """A world with moves as large as they come."""
    world = World(seed, rows=rows)
    world.cache._chunk = world.cache._window = BLOCKS
    world.swap_in()
    return world


def test_what_is_written_while_it_is_saved_is_saved_again() -> None:
    for seed in range(10):
        world = whole(seed)
        world.write([1, 2, 3])
        meeting(world).append(lambda world=world: world.write([2]))
        assert world.cache.save() == 3
        assert world.cache.statistics().written == 1
        world.unsaved = {2}
        world.save()
        world.unsaved.clear()
        world.swap_out()
        world.finish()


def test_what_is_forgotten_while_it_is_saved_keeps_its_row_so_long() -> None:
    for seed in range(10):
        world = whole(seed)
        world.write([1, 2, 3])
        live: list[int] = []

        def forget(world: World = world, live: list[int] = live) -> None:
            world.forget([1, 2])
            live.append(world.store.statistics().rows_live)
            world.write([1])  # another request's, in a row of its own
            live.append(world.store.statistics().rows_live)

        meeting(world).append(forget)
        world.cache.save()
        assert live in ([3, 4], [3, 2])  # with the rows of 1 and 2 in flight, or not any more
        assert world.store.statistics().rows_live == 2
        assert world.cache.statistics().written == 1
        world.unsaved = {1}
        world.swap_out()
        world.finish()


def test_who_waits_for_a_save_holds_up_nobody() -> None:
    world = whole(3)
    world.write([1, 2, 3])
    answers: list[int] = []

    def elsewhere() -> None:
        thread = threading.Thread(
            target=lambda: (world.cache.forget([3]), answers.append(1))  # type: ignore[func-returns-value]
        )
        thread.start()
        thread.join(20.0)

    meeting(world).append(elsewhere)
    world.cache.save()
    assert answers == [1]
    assert world.cache.statistics().saved == 2


def test_rows_in_flight_are_waited_for_before_a_store_is_full() -> None:
    waited = 0
    for seed in range(30):
        world = whole(seed, rows=4)
        if world.capacity < BLOCKS:
            world.write(list(range(world.capacity)))
            world.swap_out()
            world.swap_in(list(world.content))  # all are on their way
            world.forget(list(world.content))
            waited += world.store.statistics().rows_live > 0
            world.write([BLOCKS - 1])
        world.finish()
    assert waited > 3


def test_first_comes_first_and_the_rest_within_a_window() -> None:
    world = whole(1)
    world.write(list(range(20)))
    world.swap_out()
    world.cache._chunk, world.cache._window = 2, 4
    moved: list[list[int]] = []
    to_device = world.cache._mover.to_device

    def watched(blocks: np.ndarray, rows: np.ndarray) -> None:
        moved.append(blocks.tolist())
        to_device(blocks, rows)

    def begun() -> int:
        return sum(map(len, moved))

    world.cache._mover.to_device = watched
    world.swap_in([17, 3, 9])
    assert moved[:2] == [[17, 3], [9]]
    assert begun() <= 3 + 4
    assert world.cache.statistics().coming <= 4
    world.read([17, 3, 9])
    assert begun() <= 3 + 4 + 4
    world.read([19])  # not in its turn
    assert begun() <= 3 + 4 + 4 + 1 + 4
    while world.cache.statistics().away:
        world.cache.drain()
        before = begun()
        world.cache.advance()
        assert before < begun() <= before + 4
    assert sorted(block for blocks in moved for block in blocks) == list(range(20))
    assert max(map(len, moved)) <= 2
    world.finish()


def test_what_never_came_back_need_not_be_saved_or_waited_for() -> None:
    world = whole(2)
    world.write(list(range(20)))
    world.swap_out()
    world.cache._window = 2
    for _ in range(5):
        world.swap_in()
        before = world.amounts()["to_device_bytes"]
        world.swap_out()
        assert world.amounts()["to_device_bytes"] - before <= 2 * world.layout.row_bytes
    world.finish()


def test_a_rest_is_only_what_it_says() -> None:
    world = whole(4)
    world.write(list(range(8)))
    world.swap_out()
    world.model.gate.open_step()
    world.resident = True
    world.cache.restore([0], rest=[1, 2])
    world.cache.drain()
    assert world.cache.statistics().away == 5
    world.finish()


def test_an_unbacked_model_goes_on_and_cannot_leave() -> None:
    world = whole(5, rows=4)
    full = world.capacity
    world.write(list(range(full)))
    with pytest.raises(KvStoreFullError):
        world.write([full])
    world.write([full], unbacked=True)
    world.read(list(range(full + 1)))
    for refuses in (world.cache.back, world.cache.save, world.save):
        with pytest.raises(KvStoreFullError, match="'a'"):
            refuses()
    assert world.cache.statistics().unbacked == 1
    with pytest.raises(UsageError, match="not saved"):
        world.cache.lost()
    world.forget([0])
    world.cache.back()
    assert world.cache.statistics().unbacked == 0
    world.swap_out()
    world.finish()


def test_memory_does_not_go_with_what_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    world = whole(6)
    world.write([1, 2])
    with pytest.raises(UsageError, match="2 KV blocks are not saved"):
        world.cache.lost()
    world.swap_out()
    for gone in (world.cache.save, lambda: world.cache.require([1]), lambda: world.write([1])):
        with pytest.raises(UsageError, match="gone"):
            gone()
    with monkeypatch.context() as slow:
        slow.setattr(MoveList, "poll", lambda moves: None)  # nobody sees that they have arrived
        world.swap_in([1, 2])
        with pytest.raises(UsageError, match="in flight"):
            world.cache.lost()
    world.finish()


def test_another_identity_is_refused() -> None:
    world = whole(7)
    other = dataclasses.replace(world.identity, weights_version=2)
    mover, digests = world.cache._mover, world.cache._digests
    with pytest.raises(UsageError, match="same blocks"):
        KvCache(world.store, mover, digests, other)
    longer = BlockLayout.of([(0, 4096, world.layout.row_bytes + 1)], BLOCKS)
    wrong = CopierMover(world.driver, longer, world.region.address, method="each")
    with pytest.raises(UsageError, match="same blocks"):
        KvCache(world.store, wrong, digests, world.identity)
    world.write([1])
    with pytest.raises(UsageError, match="forget them"):
        world.cache.rekey(other)
    world.swap_out()
    world.cache.forget_all()
    world.store.rekey(other)  # behind its back
    with pytest.raises(UsageError, match="computed again"):
        world.cache.restore()
    world.cache.rekey(other)
    world.content.clear()
    world.swap_in()
    world.write([2])
    world.finish()


def test_blocks_of_every_size_go_there_and_back() -> None:
    chooser = random.Random(8)
    for method in ("batch", "each"):
        for seed in range(20):
            world = World(seed, method=method, stepped=seed % 2 == 0)
            world.swap_in()
            world.write(chooser.sample(range(BLOCKS), BLOCKS))
            for _ in range(3):
                world.swap_out()
                world.swap_in(chooser.sample(range(BLOCKS), 5))
                world.read(list(range(BLOCKS)))
            world.finish()
