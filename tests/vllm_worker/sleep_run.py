"""Two real vLLM engines in one process, one of which sleeps now and then; prints their answers.

Usage: sleep_run.py DIRECTORY SEED TURNS. The folders stock and pooled in the directory have
checkpoints m0 and m1 each, adapters for m0, and other weights for it in other.safetensors. Stock
engines on a CPU do all that vLLM does about sleep save give memory back, so that they answer as
pooled ones must. The pool holds one engine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import pytest
import vllm._custom_ops as custom_ops
from traffic import traffic
from vllm import LLM
from vllm.engine.arg_utils import EngineArgs

from gpupool.errors import UsageError

MIB = 1 << 20
CONCURRENT = 4


def engine(directory: Path, index: int, pooled: bool) -> LLM:
    more: dict[str, Any] = {}
    if pooled:
        embedded = {"device": "host", "budget_bytes": 16 * MIB, "page_bytes": 2 * MIB}
        more["worker_cls"] = "gpupool.vllm.Worker"
        more["additional_config"] = {"gpupool": {**embedded, "model": f"m{index}"}}
        if any(each.name == "sleep_mode_backend" for each in fields(EngineArgs)):  # 0.33 and newer
            more["sleep_mode_backend"] = "gpupool"
    if index == 0:
        more |= {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1}
    return LLM(
        model=str(directory / f"m{index}"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        kv_cache_memory_bytes=4 * MIB,
        block_size=32,
        **more,
    )


class Driver:
    """Keeps requests going on both engines; the first also while it sleeps, and it sleeps often."""

    def __init__(self, directory: Path, pooled: bool, seed: int) -> None:
        self.llms = [engine(directory, index, pooled) for index in range(2)]
        self.counts: Counter[str] = Counter()
        self.answers: dict[str, Any] = {}
        self._pooled = pooled
        self._checkpoint = directory / "m0" / "model.safetensors"
        self._others = directory / "other.safetensors"
        self._rng = random.Random(seed)
        adapters = sorted(directory.glob("adapter*"))
        self._coming = [
            traffic(i, seed, adapters if i == 0 else [], seeded=False) for i in range(2)
        ]
        self._live: list[dict[str, Any]] = [{}, {}]

    @property
    def busy(self) -> bool:
        return any(self._live)

    def turn(self, *, more: bool) -> None:
        index = self._rng.randrange(2)
        if more:
            self._ask(index)
        for _ in range(self._rng.choice((1, 2, 3))):
            self._step(index)
        if more and self._rng.random() < 0.15:
            self._sleep()

    def _ask(self, index: int) -> None:
        while len(self._live[index]) < CONCURRENT:
            asked = next(self._coming[index])
            prompt = {"prompt_token_ids": asked.prompt}
            self.llms[index].llm_engine.add_request(
                asked.name, prompt, asked.sampling, lora_request=asked.lora
            )
            self._live[index][asked.name] = None

    def _step(self, index: int) -> None:
        for output in self.llms[index].llm_engine.step() if self._live[index] else ():
            if output.request_id not in self._live[index]:
                continue  # aborted
            self._live[index][output.request_id] = [
                [
                    list(sample.token_ids),
                    [sorted((t, p.logprob) for t, p in at.items()) for at in sample.logprobs],
                    sample.finish_reason,
                ]
                for sample in output.outputs
            ]
            if output.finished:
                self.counts["through an adapter"] += output.lora_request is not None
                answer = self._live[index].pop(output.request_id)
                self.answers[output.request_id] = answer

    def _sleep(self) -> None:
        one, level = self.llms[0], self._rng.choice((0, 1, 1, 2, 2))
        mode = "abort" if level == 0 else self._rng.choice(("abort", "keep"))
        self.counts[f"slept at level {level}"] += 1
        one.sleep(level=level, mode=mode)
        if mode == "abort":
            self.answers |= self._live[0]
            self._live[0].clear()
        elif self._live[0]:
            self.counts["running requests kept"] += 1
        if level == 0:
            self._release_kv_cache()
        self._ask(0)  # these wait
        if self._pooled:
            self._check_out(refuses=level > 0)
        for _ in range(3):
            self._step(1)
        assert one.llm_engine.is_sleeping()
        self._wake(level)
        assert not one.llm_engine.is_sleeping()

    def _release_kv_cache(self) -> None:
        one = self.llms[0]
        one.llm_engine.step()  # tells of what was aborted
        if self._pooled:
            one.release_kv_cache_memory()
        else:  # a CPU's memory is not given up, but the scheduler does the same
            one.llm_engine.engine_core.engine_core._reset_caches()

    def _wake(self, level: int) -> None:
        one = self.llms[0]
        if level == 0:
            one.wake_up(tags=["kv_cache"] if self._pooled else ["scheduling"])
        elif level == 1 and self._rng.random() < 0.3:
            one.wake_up()
        else:
            tags = self._rng.choice((["weights", "kv_cache"], ["kv_cache", "weights"]))
            assert not one.wake_up(tags=tags[:1])
            if level == 2 and tags[0] == "weights":
                self._reload()
            assert one.wake_up(tags=tags[1:])

    def _reload(self) -> None:
        """Other weights, as after a step of training."""
        now = self._checkpoint.read_bytes()
        shutil.copy(self._others, self._checkpoint)
        self._others.write_bytes(now)
        self.llms[0].collective_rpc("reload_weights")
        self.counts["weights changed"] += 1

    def _worker(self) -> Any:
        return self.llms[0].llm_engine.engine_core.engine_core.model_executor.driver_worker.worker

    def _check_out(self, *, refuses: bool) -> None:
        worker = self._worker()
        model, swap_ins = worker.pool_model, worker.pool_model.swap_ins
        assert worker.sleep_mode_backend.state() == "SUSPENDED"
        assert not model.gate.is_resident
        if refuses:
            with pytest.raises(UsageError, match="is asleep: wake it up first"):
                self.llms[0].apply_model(lambda module: None)
        self._step(0)  # of an engine that is paused
        assert model.swap_ins == swap_ins


def main() -> None:
    custom_ops._supports_onednn = False  # the same matrix products with and without the pool
    directory, seed, turns = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    found = {}
    for kind in ("stock", "pooled"):
        driver = Driver(directory / kind, kind == "pooled", seed)
        for _ in range(turns):
            driver.turn(more=True)
        while driver.busy:
            driver.turn(more=False)
        found[kind] = {"answers": driver.answers, "counts": driver.counts}
        _kept.append(driver)
    print(json.dumps(found), flush=True)
    os._exit(0)  # nothing is left to be ended in order


_kept: list[Driver] = []  # an engine that ends takes vLLM's process groups from the others


if __name__ == "__main__":
    main()
