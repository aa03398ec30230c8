"""Three real vLLM engines in one process, stepped in a random order; prints what they answered.

Usage: engines_run.py stock|pooled DIRECTORY SEED TURNS [ahead]. The directory has checkpoints m0,
m1 and m2 and adapters for m2. In the pool only one of the three fits, so that almost every turn is
a swap. With "ahead" two batches of an engine are in flight.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# Such small products are done sooner by one thread than two threads meet.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import vllm._custom_ops as custom_ops
from adapter_slots import Adoptions, Exchanges, slots_of, what_swaps_copy
from mid_swap import MidSwap, worker_of
from traffic import traffic
from two_batches import in_flight, keep_two_in_flight
from vllm import LLM

from gpupool.errors import BehindGateError
from gpupool.kv.states import State
from gpupool.vllm import pool_worker
from gpupool.vllm.block_use import BlockTables, BlockUse

MIB = 1 << 20
ENGINES = 3
CONCURRENT = 8
# vLLM's CPU build cannot rewind a seeded generator after a chunk of a prompt, so one engine samples
# and the others prefill long prompts in chunks. One of these has too little for eight requests and
# must preempt, and has no prefix cache.
SAMPLES = 0
ADAPTS = 2
STEP_TOKENS = (4096, 192, 192)
KV_BYTES = (4 * MIB, 3 * MIB // 8, 4 * MIB)
CACHES_PREFIXES = (True, False, True)


class CountedTables(BlockTables):
    """Notes, besides, in which blocks the scheduled tokens lie, and what steps there are."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.written: set[int] = set()
        self.resumed = 0
        self.chunks = 0  # of prompts, after the first
        self.hits = 0  # blocks of prefixes
        self.hits_away = 0  # that were on the host alone
        self.states: Any = None  # of the blocks of a pooled engine

    def step(self, scheduled: Any) -> BlockUse:
        use = super().step(scheduled)
        self.written -= use.fresh
        cached = scheduled.scheduled_cached_reqs
        for new in scheduled.scheduled_new_reqs:
            size = self._block_tokens[0]
            hit = self._tables[new.req_id][0][: new.num_computed_tokens // size]
            self.hits += len(hit)
            if self.states is not None:
                self.hits_away += int(sum(self.states[hit] == State.AWAY))
        self.chunks += sum(count > 1 for count in self._later(scheduled))
        self.resumed += len(cached.resumed_req_ids)
        at = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        at |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, count in scheduled.num_scheduled_tokens.items():
            for table, tokens in zip(self._tables[name], self._block_tokens, strict=True):
                self.written.update(table[t // tokens] for t in range(at[name], at[name] + count))
        return use

    @staticmethod
    def _later(scheduled: Any) -> list[int]:
        resumed = scheduled.scheduled_cached_reqs.resumed_req_ids
        names = [n for n in scheduled.scheduled_cached_reqs.req_ids if n not in resumed]
        return [scheduled.num_scheduled_tokens[name] for name in names]


def engine(directory: Path, index: int, pooled: bool) -> Any:
    """The engine of checkpoint ``index``; a pool, if any, that holds one engine and not two."""
    more: dict[str, Any] = {}
    if pooled:
        embedded = {"device": "host", "budget_bytes": 20 * MIB, "page_bytes": 2 * MIB}
        more["worker_cls"] = "gpupool.vllm.Worker"
        more["additional_config"] = {"gpupool": {**embedded, "model": f"m{index}", "share": True}}
    if index == ADAPTS:
        more |= {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1}
    return LLM(
        model=str(directory / f"m{index}"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=STEP_TOKENS[index],
        max_num_seqs=16,
        kv_cache_memory_bytes=KV_BYTES[index],
        block_size=32,
        enable_prefix_caching=CACHES_PREFIXES[index],
        **more,
    ).llm_engine


def count_what_is_saved(worker: Any, saves: list[int]) -> None:
    """Hold what each swap-out copies of the KV cache against the blocks that were written."""
    kv, tables = worker._pool_kv._kv, worker._pool_tables
    save = kv.save
    observer = worker.pool_model.driver.observer
    row_bytes = kv.cache._identity.layout.row_bytes

    def counted() -> None:
        before = observer.amounts()["to_host_bytes"]
        save()
        moved = observer.amounts()["to_host_bytes"] - before
        assert moved == len(tables.written) * row_bytes, (moved, len(tables.written), row_bytes)
        saves.append(len(tables.written))
        tables.written.clear()

    kv.save = counted
    tables.states = kv.cache._state


class Driver:
    """Keeps eight requests going on each engine, and notes what comes of them."""

    def __init__(self, engines: list[Any], directory: Path, seed: int) -> None:
        self.adapters = sorted(directory.glob("adapter*"))
        self.engines = engines
        self.swaps = [MidSwap(one) for one in engines]
        self._rng = random.Random(seed)
        self._coming = [
            traffic(i, seed, self.adapters if i == ADAPTS else [], seeded=i == SAMPLES)
            for i in range(ENGINES)
        ]
        # Of each request the latest of each sample.
        self._live: list[dict[str, dict[int, Any]]] = [{} for _ in engines]
        self.answers: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()

    def turn(self, *, more: bool) -> None:
        """A few steps of one engine; sometimes it loses a request as it leaves or comes back."""
        index = self._rng.randrange(ENGINES)
        one, live, swap = self.engines[index], self._live[index], self.swaps[index]
        swap.act(0)  # if it has not left since
        if live and self._rng.random() < 0.04:
            swap.arriving.append(self._abort(index))
        while more and len(live) < CONCURRENT:
            asked = next(self._coming[index])
            prompt = {"prompt_token_ids": asked.prompt}
            one.add_request(asked.name, prompt, asked.sampling, lora_request=asked.lora)
            live[asked.name] = {}
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            if live:
                self._step(one, live)
        self.counts["batches in flight between turns"] += in_flight(one)
        if live and self._rng.random() < 0.04:
            swap.leaving.append(self._abort(index))

    def _abort(self, index: int) -> Callable[[], None]:
        name = self._rng.choice(sorted(self._live[index]))

        def aborting() -> None:
            if name in self._live[index]:
                self.engines[index].abort_request([name])
                self._note(name, self._live[index].pop(name))
                self.counts["aborted"] += 1

        return aborting

    @property
    def busy(self) -> bool:
        return any(self._live)

    def _step(self, one: Any, live: dict[str, Any]) -> None:
        for output in one.step():
            if output.request_id not in live:
                continue  # aborted in the middle of this step
            samples = live[output.request_id]
            samples.update((sample.index, sample) for sample in output.outputs)
            if output.finished:
                self._note(output.request_id, live.pop(output.request_id))
                self.counts["cached tokens"] += output.num_cached_tokens or 0
                self.counts["stopped"] += samples[0].stop_reason is not None
                self.counts["several samples"] += len(samples) > 1
                self.counts["through an adapter"] += output.lora_request is not None

    def _note(self, name: str, samples: dict[int, Any]) -> None:
        self.answers[name] = [
            [
                o.index,
                list(o.token_ids),
                [sorted((t, p.logprob) for t, p in at.items()) for at in o.logprobs],
                o.text,
                o.finish_reason,
            ]
            for _, o in sorted(samples.items())
        ]


def weight_sum(model: Any) -> float:
    """What the weights of a model add up to."""
    return float(sum(parameter.double().sum() for parameter in model.parameters()))


def main() -> None:
    custom_ops._supports_onednn = False  # the same matrix products with and without the pool
    pooled, directory = sys.argv[1] == "pooled", Path(sys.argv[2])
    seed, turns = int(sys.argv[3]), int(sys.argv[4])
    pool_worker.BlockTables = CountedTables  # type: ignore[misc]
    adoptions = pool_worker.adopt = Adoptions()  # type: ignore[assignment]
    if "ahead" in sys.argv:
        keep_two_in_flight()
    engines = [engine(directory, index, pooled) for index in range(ENGINES)]
    saves: list[int] = []
    if pooled:
        for one in engines:
            count_what_is_saved(worker_of(one), saves)
    exchanges = Exchanges(worker_of(engines[ADAPTS]))
    driver = Driver(engines, directory, seed)
    for _ in range(turns):
        driver.turn(more=True)
    while driver.busy:
        driver.turn(more=False)
    driver.counts["adapters exchanged in steps"] = exchanges.in_steps
    found: dict[str, Any] = {"answers": driver.answers, "counts": driver.counts}
    # RPC into the models, each of which is out when its turn comes in a pool of one.
    found["sums"] = [one.apply_model(weight_sum)[0] for one in engines * 2]
    if pooled:
        try:
            engines[0].collective_rpc(lambda worker: weight_sum(worker.model_runner.model))
        except BehindGateError:
            found["refused"] = True
        found["swaps"] = sum(worker_of(one).pool_model.swap_ins for one in engines)
        tables = [worker_of(one)._pool_tables for one in engines]
        for what in ("resumed", "chunks", "hits", "hits_away"):
            found[what] = sum(getattr(table, what) for table in tables)
        found["in flight"] = [sum(s.in_flight[i] for s in driver.swaps) for i in (0, 1)]
        found["blocks saved"] = sum(saves)
        adapts = engines[ADAPTS], worker_of(engines[ADAPTS]).pool_model
        found["outside bytes"] = sum(adoptions.outside_bytes)
        found["slots"] = slots_of(*adapts)
        found["copied"] = what_swaps_copy(*adapts, driver.adapters)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
