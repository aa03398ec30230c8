"""Two vLLM engines in one process, stepped in turn; prints what they answered.

Usage: vllm_pair.py stock|pooled host|cuda DIRECTORY. The directory has checkpoints m0 and m1. The
pool holds one of the two, so that every turn is a swap.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# The sampler of flashinfer is compiled when it is first used, where it is there at all.
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")

from vllm import LLM, SamplingParams

MIB = 1 << 20
PROMPTS = 4
PROMPT_TOKENS, ANSWER_TOKENS = 40, 24
KV_BYTES = 16 * MIB
# Weights are of 4 bytes each on the host, and of 2 on a GPU.
BUDGET_BYTES = {"host": 56 * MIB, "cuda": 40 * MIB}


def engine(directory: Path, index: int, pooled: bool, device: str) -> Any:
    more: dict[str, Any] = {}
    if pooled:
        embedded = {"device": device, "budget_bytes": BUDGET_BYTES[device], "page_bytes": 2 * MIB}
        more["worker_cls"] = "gpupool.vllm.Worker"
        more["additional_config"] = {
            "gpupool": {**embedded, "model": f"m{index}", "verify": "always"}
        }
    return LLM(
        model=str(directory / f"m{index}"),
        dtype="bfloat16" if device == "cuda" else "float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        gpu_memory_utilization=0.3,
        kv_cache_memory_bytes=KV_BYTES,
        **more,
    ).llm_engine


def main() -> None:
    kind, device, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    pooled = kind == "pooled"
    if device == "host":
        # The pool has vLLM leave its packed weights alone: compare with what takes the same path.
        import vllm._custom_ops as custom_ops

        custom_ops._supports_onednn = False
    engines = [engine(directory, index, pooled, device) for index in range(2)]
    sampling = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    for number, one in enumerate(engines):
        for request in range(PROMPTS):
            tokens = [10 + (7 * i + 31 * request + number) % 200 for i in range(PROMPT_TOKENS)]
            one.add_request(f"{number}-{request}", {"prompt_token_ids": tokens}, sampling)
    answers: dict[str, list[int]] = {}
    swaps = 0
    while any(one.has_unfinished_requests() for one in engines):
        for one in engines:
            if not one.has_unfinished_requests():
                continue
            model = _model(one) if pooled else None
            before = model.last_swap_in if model else None
            for output in one.step():
                if output.finished:
                    answers[output.request_id] = list(output.outputs[0].token_ids)
            swaps += model is not None and model.last_swap_in is not before
    print(json.dumps({"answers": answers, "swaps": swaps}))


def _model(one: Any) -> Any:
    return one.engine_core.engine_core.model_executor.driver_worker.worker.pool_model


if __name__ == "__main__":
    main()
