"""Two real vLLM engines in one process, stepped in turn; prints tokens and log-probabilities.

Usage: engines_run.py stock|pooled DIRECTORY, the latter with checkpoints m0 and m1.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"

import vllm._custom_ops as custom_ops
from vllm import LLM, SamplingParams

from gpupool.errors import BehindGateError

MIB = 1 << 20


def engine(directory: Path, index: int, pooled: bool) -> Any:
    """The engine of checkpoint ``index``; a pool, if any, that holds one engine and not two."""
    pool: dict[str, Any] = {}
    if pooled:
        embedded = {"device": "host", "budget_bytes": 16 * MIB, "page_bytes": 2 * MIB}
        pool["worker_cls"] = "gpupool.vllm.Worker"
        pool["additional_config"] = {"gpupool": {**embedded, "model": f"m{index}"}}
    return LLM(
        model=str(directory / f"m{index}"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=192,  # so that the long prompts are prefilled in chunks
        max_num_seqs=8,
        kv_cache_memory_bytes=4 * MIB,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        **pool,
    ).llm_engine


def requests(index: int) -> list[tuple[str, list[int], SamplingParams]]:
    """Short and long prompts, one shared prefix, greedy and seeded sampling, n of 2."""
    rng = random.Random(index)
    shared = [rng.randrange(3, 4000) for _ in range(260)]
    common = {"max_tokens": 24, "logprobs": 2, "detokenize": False}
    greedy = SamplingParams(temperature=0.0, **common)
    # Seeded requests have short prompts: vLLM's CPU build cannot rewind a seeded generator after
    # a chunk of a prompt.
    found = [
        (
            f"{index}-short{i}",
            [rng.randrange(3, 4000) for _ in range(3 + i)],
            SamplingParams(temperature=0.9, seed=40 + i, n=1 + i % 2, **common),
        )
        for i in range(3)
    ]
    found += [(f"{index}-long{i}", [*shared, 7 + i], greedy) for i in range(3)]
    return found


def weight_sum(model: Any) -> float:
    """What the weights of a model add up to."""
    return float(sum(parameter.double().sum() for parameter in model.parameters()))


def main() -> None:
    custom_ops._supports_onednn = False  # the same matrix products with and without the pool
    pooled, directory = sys.argv[1] == "pooled", Path(sys.argv[2])
    engines = [engine(directory, index, pooled) for index in range(2)]
    waiting = [requests(index) for index in range(2)]
    answers: dict[str, Any] = {}
    cached_tokens = 0
    while any(waiting) or any(e.has_unfinished_requests() for e in engines):
        for index, one in enumerate(engines):
            if waiting[index]:
                name, prompt, sampling = waiting[index].pop()
                one.add_request(name, {"prompt_token_ids": prompt}, sampling)
            if not one.has_unfinished_requests():
                continue
            for output in one.step():
                if output.finished:
                    cached_tokens += output.num_cached_tokens or 0
                    answers[output.request_id] = [
                        [
                            list(o.token_ids),
                            [sorted((t, p.logprob) for t, p in at.items()) for at in o.logprobs],
                        ]
                        for o in output.outputs
                    ]
    swaps = 0
    refused = False
    # RPC into the models, each of which is out when its turn comes in a pool of one.
    sums = [one.apply_model(weight_sum)[0] for one in engines * 2]
    if pooled:
        try:
            engines[0].collective_rpc(lambda worker: weight_sum(worker.model_runner.model))
        except BehindGateError:
            refused = True
        for one in engines:
            worker = one.engine_core.engine_core.model_executor.driver_worker.worker
            swaps += worker.pool_model.swap_ins
    found = {"answers": answers, "swaps": swaps, "cached_tokens": cached_tokens}
    print(json.dumps({**found, "sums": sums, "refused": refused}))


if __name__ == "__main__":
    main()
