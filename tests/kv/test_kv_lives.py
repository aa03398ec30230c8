"""Random use of the cache, by hypothesis and by seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from kv_life import Life
from kv_world import BLOCKS, World, choose

from gpupool._core import Verify
from gpupool.errors import DriverError, KvStoreFullError

SOME = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=8, unique=True)
RESIDENT = precondition(lambda self: self.world.resident)
AWAY = precondition(lambda self: not self.world.resident)


class Caching(RuleBasedStateMachine):
    """Blocks are written, saved, lost, restored and forgotten in any order."""

    stepped = True

    @initialize(seed=st.integers(0, 2**32), rows=st.sampled_from([6, 12, BLOCKS]))
    def begin(self, seed: int, rows: int) -> None:
        self.world = World(seed, stepped=self.stepped, rows=rows)

    @AWAY
    @rule(first=SOME)
    def swap_in(self, first: list[int]) -> None:
        self.world.swap_in(first)

    @RESIDENT
    @rule(blocks=SOME, anew=st.booleans())
    def write(self, blocks: list[int], anew: bool) -> None:
        if anew:
            self.world.forget(blocks)
        needed = len({*self.world.content, *blocks})
        try:
            self.world.write(blocks)
        except KvStoreFullError:
            assert needed > self.world.capacity
        else:
            assert needed <= self.world.capacity

    @RESIDENT
    @rule(blocks=SOME)
    def read(self, blocks: list[int]) -> None:
        self.world.read(blocks)

    @RESIDENT
    @rule()
    def save(self) -> None:
        self.world.save()

    @RESIDENT
    @rule()
    def swap_out(self) -> None:
        self.world.swap_out()

    @rule(blocks=SOME)
    def forget(self, blocks: list[int]) -> None:
        self.world.forget(blocks)

    @invariant()
    def memory_accounted_is_memory_held(self) -> None:
        if hasattr(self, "world"):
            self.world.check_accounts()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


class CachingOnThreads(Caching):
    """The same, with streams that run by themselves."""

    stepped = False


TestCaching = Caching.TestCase
TestCachingOnThreads = CachingOnThreads.TestCase
for case in (TestCaching, TestCachingOnThreads):
    case.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
del case


@pytest.mark.parametrize("stepped", [True, False])
def test_lives_in_which_driver_calls_and_memory_fail(stepped: bool) -> None:
    faults = full = 0
    for seed in range(1000, 1060):
        life = Life(seed, stepped=stepped)
        life.run(60)
        faults, full = faults + life.faults, full + life.full
    assert faults > 100
    assert full > 100


def swaps(world: World) -> list[Callable[[], object]]:
    return [
        lambda: world.write([0, 1, 2, 3]),
        world.cache.save,
        lambda: world.write([2, 3, 4]),
        world.cache.save,
        world.cache.drain,
        world.cache.lost,
        world.scribble,
        lambda: world.cache.restore([3]),
        lambda: world.read([3, 0]),
        lambda: world.forget([0, 1]),
        lambda: world.read([2, 4]),
    ]


@pytest.mark.parametrize("method", ["batch", "each"])
@pytest.mark.parametrize("lasting", [False, True])
def test_every_driver_call_of_a_swap_fails_once(lasting: bool, method: str) -> None:
    nth, met = 0, True
    refused: set[str] = set()
    while met:
        nth += 1
        world = World(nth % 7, method=method, verify=Verify.always)
        world.swap_in()
        world.plan.arm(nth, 999, lasting)
        for action in swaps(world):
            try:
                action()
            except DriverError as error:
                refused.add(error.call)
                # All that failed can be done again, and then goes through.
                world.plan.disarm()
                action()
        met = world.plan.injected > 0
        world.plan.disarm()
        world.unsaved.clear()
        world.finish()
    assert nth > 20
    assert {"digest_runs", "event_record"} <= refused


class Clock:
    """A second passes from one look to the next."""

    now_s = 0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


@pytest.mark.parametrize("method", ["batch", "each"])
@pytest.mark.parametrize("written", [[], [4, 5, 6, 7, 8]])
def test_what_a_failed_save_left_takes_no_time_until_it_is_tried_again(
    written: list[int], method: str
) -> None:
    """A fault at every driver call of a save, with blocks coming back meanwhile."""
    nth, met, failed = 0, True, 0
    while met:
        nth += 1
        world = World(nth % 7, method=method, verify=Verify.always)
        clock = world.cache._moves._clock = Clock()
        world.swap_in()
        world.write([0, 1, 2, 3])
        world.swap_out()
        world.swap_in()
        world.write(written)
        world.plan.arm(nth, 999)
        for action in (world.cache.save, world.cache.drain):
            try:
                action()
            except DriverError:
                failed += 1
                clock.now_s += 1_000_000  # until the model is asked to leave again
                action()
        met = world.plan.injected > 0
        world.plan.disarm()
        world.unsaved.clear()
        of = world.cache.statistics()
        assert 0 < of.saving_s < 1000
        assert 0 < of.restoring_s < 1000
        world.finish()
    assert failed > (5 if written else 0)


def test_only_what_was_written_is_moved() -> None:
    chooser = random.Random(5)
    world = World(5)
    saved = restored = 0
    for _ in range(30):
        away = world.cache.statistics().away
        world.swap_in(choose(chooser))
        world.read(list(world.content))
        world.cache.drain()
        restored += away
        for _ in range(3):
            world.write(choose(chooser))
            if chooser.random() < 0.3:
                saved += len(world.unsaved)
                world.save()
        saved += len(world.unsaved)
        world.swap_out()
    row_bytes = world.layout.row_bytes
    assert world.amounts()["to_host_bytes"] == saved * row_bytes
    assert world.amounts()["to_device_bytes"] == restored * row_bytes
    assert world.cache.statistics().bytes_saved == saved * row_bytes
    assert world.cache.statistics().bytes_restored == restored * row_bytes
    world.finish()
