"""Blocks that follow a model's swaps on a GPU, by every way of moving them, and the tuning."""

from __future__ import annotations

import random
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from gpupool import Model, Pool
from gpupool._core import Driver
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.mover import Mover
from gpupool.kv.paged import PagedKv
from gpupool.kv.planned_mover import movers
from gpupool.kv.tuning import measure
from gpupool.pool import MIB

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = 128
PAGE = 16 * 1024
LAYERS = 24
LAYOUT = BlockLayout.of([(i * BLOCKS * PAGE, PAGE, PAGE) for i in range(LAYERS)], BLOCKS)


def by(way: str, driver: Driver, layout: BlockLayout, address: int, size_bytes: int) -> Mover:
    return movers(driver, layout, address, size_bytes)[way]


class Cache:
    """Blocks of one model, as a tensor of layers and blocks."""

    def __init__(self, torch: ModuleType, pool: Pool, name: str, way: str) -> None:
        self.model: Model = pool.model(name)
        self.kv = PagedKv(
            self.model, LAYOUT, region_bytes=96 * MIB, dtype="uint8", mover=partial(by, way)
        )
        whole = torch.from_dlpack(self.kv.region)[: LAYOUT.extent_bytes]
        self.blocks: Tensor = whole.view(LAYERS, BLOCKS, PAGE)
        self.content: dict[int, int] = {}
        self._torch = torch

    def step(self, chooser: random.Random) -> None:
        used = chooser.sample(range(BLOCKS), 20)
        self.kv.bring_first(used)
        with self.model.resident():
            self.kv.write(used[:10])
            self.kv.require(used)
            self.check(used)
            for block in used[:10]:
                self.content[block] = chooser.randrange(251)
                self.blocks[:, block] = self.content[block]
            self._torch.cuda.synchronize()

    def check(self, blocks: list[int]) -> None:
        for block in blocks:
            if block in self.content:
                assert bool((self.blocks[:, block] == self.content[block]).all()), block


@pytest.mark.parametrize("way", ["each", "batch", "kernel"])
def test_blocks_survive_swaps(torch: ModuleType, triton: ModuleType, pool: Pool, way: str) -> None:
    chooser = random.Random(1)
    models = [Cache(torch, pool, name, way) for name in "abc"]  # of which two fit
    for _ in range(60):
        chooser.choice(models).step(chooser)
    for cache in models:
        with cache.model.resident():
            cache.kv.require(cache.content)
            cache.check(list(cache.content))
    assert sum(cache.model.swap_ins for cache in models) > 20


def test_every_way_is_measured(torch: ModuleType, triton: ModuleType, pool: Pool) -> None:
    table = measure("cuda", piece_bytes=(4096, 65536), pieces=(16, 256), runs=1)
    assert "kernel" in table.methods("to_host")
    assert table.device == torch.cuda.get_device_name(0)
