"""Weights that are loaded into the pool, by torch's own allocator."""

from __future__ import annotations

from types import ModuleType

import pytest

from gpupool import Pool
from gpupool.adopt import adopt
from gpupool.pool import MIB

WIDTH = 1024


def test_weights_are_loaded_into_the_pool_and_move(pool: Pool, torch: ModuleType) -> None:
    pytest.importorskip("vllm")
    from gpupool.vllm.loading_memory import LoadingMemory

    before, model = pool.free_bytes, pool.model("a")
    room = LoadingMemory(lambda: pool.model("a (loading)"), 64 * MIB)
    room.begin()
    module = torch.nn.Linear(WIDTH, WIDTH, device="cuda", dtype=torch.float16)
    module.requires_grad_(False)
    row = torch.ones(1, WIDTH, device="cuda", dtype=torch.float16)
    expected = module(row).cpu(), module.weight.cpu()  # with workspaces, which live on
    del row
    assert pool.free_bytes <= before - 64 * MIB
    adopt(module, model)
    room.end()
    assert pool.free_bytes == before
    with model.resident():
        row = torch.ones(1, WIDTH, device="cuda", dtype=torch.float16)
        assert torch.equal(module(row).cpu(), expected[0])
        assert torch.equal(module.weight.cpu(), expected[1])


def test_what_lives_on_gets_memory_of_its_own(pool: Pool, torch: ModuleType) -> None:
    pytest.importorskip("vllm")
    from gpupool.vllm.loading_memory import LoadingMemory

    before = pool.free_bytes
    room = LoadingMemory(lambda: pool.model("a (loading)"), 64 * MIB)
    room.begin()
    kept = torch.ones(WIDTH, device="cuda")
    view = kept[10:20]
    room.end()
    assert pool.free_bytes == before
    view.fill_(3)
    assert float(kept.sum()) == WIDTH + 20
