"""Random lives of a KV cache."""

from __future__ import annotations

import random

from kv_world import BLOCKS, Modules, World, choose, flip, unbacked_of

from gpupool._core import Verify
from gpupool.errors import DamagedMemoryError, DriverError, KvStoreFullError


class Life:
    """Anything that an engine may do, in random order, with driver calls failing."""

    def __init__(self, seed: int, modules: Modules | None = None, *, stepped: bool = True) -> None:
        self.chooser = random.Random(seed)
        rows = self.chooser.choice([6, 12, BLOCKS])
        self.world = World(seed, rows=rows, modules=modules, stepped=stepped)
        self.exact = True  # whether it is known what a failed save did save
        self.faults = self.full = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self.world.finish()

    def step(self) -> None:
        world, chooser = self.world, self.chooser
        blocks = choose(chooser)
        try:
            if not world.resident:
                if chooser.random() < 0.3:
                    world.forget(blocks)
                elif world.verify is Verify.always and world.content and chooser.random() < 0.3:
                    self.come_back_wrong()
                else:
                    self.bring_back(blocks)
            else:
                self.act(blocks)
        except DriverError:
            assert world.plan.injected > 0
            self.faults += 1
        except KvStoreFullError:
            self.full += 1
        finally:
            world.plan.disarm()
        world.check_accounts(self.exact)

    def act(self, blocks: list[int]) -> None:
        world, chooser = self.world, self.chooser
        action = chooser.choice(
            ["write", "write", "anew", "read", "forget", "save", "away", "over"]
        )
        if action == "anew":
            world.forget(blocks)
        self.arm()
        if action in ("write", "anew"):
            self.write(blocks)
        elif action == "over":
            world.write(blocks[:2], unbacked=True)
        elif action == "read":
            world.read(blocks)
        elif action == "forget":
            world.forget(blocks)
        elif action == "save":
            self.save()
        else:
            self.leave()

    def arm(self) -> None:
        if self.chooser.random() < 0.2:
            self.world.plan.arm(self.chooser.randint(1, 6), 999, self.chooser.random() < 0.2)

    def write(self, blocks: list[int]) -> None:
        world = self.world
        before, slabs = world.cache.statistics(), world.store.statistics().slabs
        unbacked = unbacked_of(world)
        needed = len({*world.content, *blocks} - (unbacked - set(blocks)))
        world.memories.refuse_at = self.chooser.choice([0, 0, 0, 1, 2, 3])
        try:
            world.write(blocks)
        except (KvStoreFullError, DriverError) as error:
            after = world.cache.statistics()
            assert world.store.statistics().slabs <= slabs, "memory was kept for nothing"
            assert (after.written, after.unbacked) == (before.written, before.unbacked)
            if isinstance(error, KvStoreFullError) and not str(error).endswith("no memory"):
                assert needed > world.capacity, "there was room"
            raise
        finally:
            world.memories.refuse_at = 0
        assert needed <= world.capacity, "there was no room"

    def bring_back(self, first: list[int]) -> None:
        self.world.model.gate.open_step()
        self.world.resident = True
        if self.chooser.random() < 0.3:  # the prefix cache is reset at once
            self.world.cache.restore(first)
            self.world.forget(list(self.world.content))
            return
        self.arm()
        self.world.cache.restore(first)

    def come_back_wrong(self) -> None:
        """A bit of a block is wrong, once on its way or in the copy on the host, until it is right.

        Or until the block is given up.
        """
        world, chooser = self.world, self.chooser
        block = chooser.choice(sorted(world.content))
        if chooser.random() < 0.3:
            end = world.slip({block}, times=1)
            world.swap_in([block])
            world.read([block])
            return end()
        row, bit = world.row_of(block), chooser.randrange(8 * world.layout.row_bytes)
        flip(row, bit)
        world.swap_in([block])
        try:
            world.cache.require([block])
        except DamagedMemoryError as error:
            assert f"block {block} of" in str(error)
        else:
            raise AssertionError("what is wrong was given to a step")
        if chooser.random() < 0.5:
            world.forget([block])
            world.write([block], unbacked=True)
            return None
        flip(row, bit)
        world.cache.drain()
        world.cache.lost()
        world.cache.restore()
        return world.read([block])

    def save(self) -> None:
        world = self.world
        unsaved, before = len(world.unsaved), world.amounts()["to_host_bytes"]
        try:
            saved = world.cache.save()
        except DriverError:
            # What has not arrived is not saved.
            assert unsaved == 0 or world.cache.statistics().written > 0
            self.exact = False
            raise
        except KvStoreFullError:
            assert world.cache.statistics().written == unsaved or not self.exact
            raise
        assert saved == unsaved or (saved < unsaved and not self.exact)
        moved_bytes = world.amounts()["to_host_bytes"] - before
        assert moved_bytes == saved * world.layout.row_bytes
        assert world.cache.statistics().written == 0
        world.unsaved.clear()
        self.exact = True

    def leave(self) -> None:
        self.save()
        self.world.cache.drain()
        self.world.cache.lost()
        self.world.plan.disarm()
        self.world.resident = False
        self.world.model.gate.close_step()
        self.world.model.swap_out()
