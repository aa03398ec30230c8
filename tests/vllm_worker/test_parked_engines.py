"""Engines of one process whose images do not fit host memory at once answer as undisturbed ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from async_engine import FakeWorker, running, vllm_config

from gpupool.errors import UsageError
from gpupool.vllm import settings, worker

MIB = 1 << 20
ENGINES = 3
PooledWorker = worker.pooled(FakeWorker)


@pytest.fixture(autouse=True)
def fresh_pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pools: dict[str, Any] = {}
    monkeypatch.setattr(settings, "_pools", pools)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    yield
    for _, pool in pools.values():
        assert pool.statistics().host_bytes == 0


def config(name: str, folder: Path, **more: Any) -> Any:
    """Room on the device for one; on the host for the blocks of all and the images of two."""
    embedded = {
        "device": "host",
        "budget_bytes": 6 * MIB,
        "page_bytes": 2 * MIB,
        "host_budget_bytes": 108 << 10,
        "parking_folder": str(folder),
        "model": name,
    }
    return vllm_config({**embedded, **more})


def tokens_of(worker_class: Any, folder: Path, seed: int) -> tuple[list[Any], int]:
    """What all say, stepped in an order that the seed draws, and how much was parked at most."""
    chance, parked_bytes = random.Random(seed), 0
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                running(
                    worker_class,
                    config(f"m{index}", folder, kv_store_bytes=16 << 10),
                    seed=seed + index,
                    requests=4,
                    tokens=6,
                )
            )
            for index in range(ENGINES)
        ]
        while busy := [engine for engine in engines if engine.busy]:
            chance.choice(busy).step()
            for _, pool in settings._pools.values():
                parked = sum(model.parked_file_bytes for model in pool.statistics().models)
                parked_bytes = max(parked_bytes, parked)
        return [engine.tokens for engine in engines], parked_bytes


@pytest.mark.parametrize("seed", range(5))
def test_answers_over_parked_images(tmp_path: Path, seed: int) -> None:
    alone, _ = tokens_of(FakeWorker, tmp_path, seed)
    pooled, parked_bytes = tokens_of(PooledWorker, tmp_path, seed)
    assert pooled == alone
    assert parked_bytes > 0


def test_engines_that_differ_on_their_pool_are_told_in_what(tmp_path: Path) -> None:
    with running(PooledWorker, config("a", tmp_path), seed=1, requests=1, tokens=4):
        for name in ("host_budget_bytes", "budget_bytes", "parking_limit_bytes"):
            with pytest.raises(UsageError, match=f"'host' with {name}="):
                PooledWorker(config("b", tmp_path, **{name: 8 * MIB}), 1)


def test_a_folder_without_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs host_budget_bytes"):
        PooledWorker(config("a", tmp_path, host_budget_bytes=None), 1)
