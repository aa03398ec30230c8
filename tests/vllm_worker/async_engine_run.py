"""Run fake engines that share a pool, in a process of its own: a stray touch would end it.

Usage: async_engine_run.py SEEDS [BREAK], where BREAK names a safeguard to take away.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

from async_engine import FakeWorker, running, vllm_config

from gpupool import adopt
from gpupool.kv.cache import KvCache
from gpupool.kv.paged import PagedKv
from gpupool.vllm import compat
from gpupool.vllm import worker as pool_worker
from gpupool.vllm.block_use import BlockUse

MIB = 1 << 20
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # engines of one process share a pool


def tokens_of(engines: list[Any], rng: random.Random) -> list[dict[str, list[int]]]:
    """Step the engines in a random order until all are done."""
    while busy := [engine for engine in engines if engine.busy]:
        engine = rng.choice(busy)
        for _ in range(rng.choice((1, 1, 1, 5))):
            if engine.busy:
                engine.step()
    return [engine.tokens for engine in engines]


def undisturbed(seed: int) -> list[dict[str, list[int]]]:
    """The same engines with the platform's own worker and memory of their own."""
    with (
        running(FakeWorker, vllm_config({}), seed=seed, requests=16, tokens=14) as a,
        running(FakeWorker, vllm_config({}), seed=seed + 1, requests=16, tokens=14) as b,
    ):
        return tokens_of([a, b], random.Random(seed))


def break_safeguard(name: str, worker: Any) -> None:
    """Take one safeguard away, to see that the tokens depend on it."""
    if name == "synchronize":
        worker.synchronize_device = lambda self: None
    elif name == "written":
        PagedKv.write = lambda self, blocks: None  # type: ignore[method-assign]
    elif name == "restored":
        restore = KvCache.restore
        KvCache.restore = lambda self, _: restore(self, [], [])  # type: ignore[method-assign]
        KvCache.require = lambda self, blocks: None  # type: ignore[method-assign]
    elif name == "fresh":  # what is in use is taken for given out anew
        BlockUse.all_blocks = lambda self: iter(())  # type: ignore[method-assign]
        forget = KvCache.forget
        KvCache.forget = lambda self, _: forget(self, range(24))  # type: ignore[method-assign]
    elif name == "whole":  # none: state that is not in blocks of tokens is kept all the same
        compat.block_layout = lambda *_: None
    elif name == "runtime":
        always = property(lambda self: True, lambda self, value: None)
        adopt._Span.only_parameters = always  # type: ignore[assignment]


def pooled(worker: Any, seed: int) -> tuple[list[dict[str, list[int]]], int]:
    """Both engines in one pool, and how often they came in."""

    def config(name: str) -> Any:
        # A page each of weights, buffers and KV: the budget holds one engine, not two.
        return vllm_config(
            {"device": "host", "budget_bytes": 6 * MIB, "page_bytes": 2 * MIB, "model": name}
        )

    with (
        running(worker, config(f"a{seed}"), seed=seed, requests=16, tokens=14) as a,
        running(worker, config(f"b{seed}"), seed=seed + 1, requests=16, tokens=14) as b,
    ):
        tokens = tokens_of([a, b], random.Random(seed))
        return tokens, a.worker.pool_model.swap_ins + b.worker.pool_model.swap_ins


def main() -> int:
    worker = pool_worker.pooled(FakeWorker)
    break_safeguard(sys.argv[2] if len(sys.argv) > 2 else "", worker)
    for seed in range(1, int(sys.argv[1]) + 1):
        tokens, swaps = pooled(worker, seed)
        if tokens != undisturbed(seed):
            print(f"seed={seed} tokens differ")
            return 1
        print(f"seed={seed} swaps={swaps}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
