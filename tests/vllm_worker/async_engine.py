"""An engine and a worker that behave as vLLM's do on CUDA: work is launched, and runs later.

The worker's device work is queued and runs only when something waits for it, as late as it may.
The engine keeps two batches in flight, sometimes samples a batch only after the next has been
launched, and sends steps of zero tokens. Tokens depend on every byte of weights and KV read.
"""

from __future__ import annotations

import random
from collections import deque
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)

BLOCKS = 24
BLOCK_TOKENS = 4
LAYERS = 2
_SPEC = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.int64)
_PAGE = _SPEC.page_size_bytes  # per layer and block: K and V, one int64 per token each


def kv_cache_config() -> KVCacheConfig:
    """Two layers, layer outermost, as the CPU and CUDA builds lay them out."""
    names = [f"layer{i}" for i in range(LAYERS)]
    tensor = KVCacheTensor(
        size=LAYERS * BLOCKS * _PAGE,
        layers=names,
        layer_stride=BLOCKS * _PAGE,
        block_stride=_PAGE,
    )
    return KVCacheConfig(
        num_blocks=BLOCKS,
        kv_cache_tensors=[tensor],
        kv_cache_groups=[KVCacheGroupSpec(names, _SPEC)],
    )


def vllm_config(gpupool: dict[str, Any]) -> SimpleNamespace:
    """As much of a configuration as the worker looks at."""
    return SimpleNamespace(
        additional_config={"gpupool": gpupool},
        num_speculative_tokens=0,
        speculative_config=None,
        scheduler_config=SimpleNamespace(async_scheduling=True),
        parallel_config=SimpleNamespace(
            world_size=1,
            tensor_parallel_size=1,
            data_parallel_size=1,
            rank=0,
            enable_eplb=False,
        ),
        instance_id="an engine",
        model_config=SimpleNamespace(enable_sleep_mode=True),
        cache_config=SimpleNamespace(kv_cache_memory_bytes=1 << 20, enable_prefix_caching=True),
        compilation_config=SimpleNamespace(static_forward_context={}),
        kv_transfer_config=None,
    )


class Module(torch.nn.Module):
    """Weights and a buffer that every step changes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        values = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(
            torch.randint(1, 1 << 30, (3000,), generator=values), requires_grad=False
        )
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))


class Output:
    """A result that is there once the device has got that far."""

    def __init__(self, worker: FakeWorker, until: int) -> None:
        self._worker = worker
        self._until = until
        self.tokens: dict[str, int] = {}

    def get_output(self) -> dict[str, int]:
        self._worker.run_until(self._until)
        return self.tokens


class FakeWorker:
    """The platform's worker, as far as the pool worker builds on it."""

    def __init__(self, config: Any, seed: int) -> None:
        self.vllm_config = config
        self._seed = seed
        self._launched: deque[Any] = deque()
        self._launch_count = 0
        self._run_count = 0
        self._unsampled: deque[Any] = deque()
        self.lora = 0

    def _maybe_get_memory_pool_context(self, tag: str) -> Any:
        return nullcontext()

    def load_model(self) -> None:
        self._loaded = module = Module(self._seed)
        self.model_runner = SimpleNamespace(get_model=lambda: module)

    def determine_available_memory(self) -> int:
        int(self._module().weight.sum())  # profiling reads the weights
        return 1 << 20

    def initialize_from_config(self, config: KVCacheConfig) -> None:
        with self._maybe_get_memory_pool_context("kv_cache"):
            raw = torch.zeros(config.kv_cache_tensors[0].size, dtype=torch.int8)
        self._kv = raw.view(torch.int64).view(LAYERS, BLOCKS, 2, BLOCK_TOKENS)

    def compile_or_warm_up_model(self) -> float:
        return 0.0

    def _module(self) -> Any:
        return self._loaded

    def synchronize_device(self) -> None:
        self.run_until(self._launch_count)

    def run_until(self, count: int) -> None:
        while self._run_count < count:
            self._run_count += 1
            self._launched.popleft()()

    def execute_model(self, scheduled: Any) -> Any:
        if scheduled.total_num_scheduled_tokens == 0:
            return {}
        self._launch_count += 1
        output = Output(self, self._launch_count)
        self._launched.append(lambda: self._forward(scheduled, output))
        self._unsampled.append(output)
        return None

    def sample_tokens(self, grammar: Any) -> Output:
        self._launch_count += 1
        output = self._unsampled.popleft()
        self._launched.append(lambda: None)
        output._until = self._launch_count
        return output

    def add_lora(self, rank: int) -> bool:
        self.synchronize_device()
        self._module().weight[:rank].add_(1)
        return True

    def shutdown(self) -> None:
        pass

    def _forward(self, scheduled: Any, output: Output) -> None:
        module = self._module()
        module.steps += 1
        mixed = int(module.weight.sum()) + int(module.steps)
        for request, (blocks, at) in scheduled.slots.items():
            seen = 0
            for token in range(at):
                block, slot = blocks[token // BLOCK_TOKENS], token % BLOCK_TOKENS
                seen = (seen * 31 + int(self._kv[:, block, :, slot].sum())) % (1 << 40)
            token = (mixed + seen * 7 + at) % 50021
            block, slot = blocks[at // BLOCK_TOKENS], at % BLOCK_TOKENS
            for layer in range(LAYERS):
                self._kv[layer, block, 0, slot] = token + layer
                self._kv[layer, block, 1, slot] = token * (layer + 3)
            output.tokens[request] = token


class Engine:
    """A scheduler with continuous batching over a fixed set of requests."""

    def __init__(self, worker: Any, seed: int, requests: int, tokens: int) -> None:
        self.worker = worker
        self._random = random.Random(seed)
        self._waiting = [(f"r{i}", tokens + self._random.randrange(4)) for i in range(requests)]
        self._running: dict[str, SimpleNamespace] = {}
        self._free = list(range(1, BLOCKS))
        self._in_flight: deque[Any] = deque()
        self._finished: set[str] = set()
        self._deferred = False
        self.tokens: dict[str, list[int]] = {}
        worker.load_model()
        worker.determine_available_memory()
        worker.initialize_from_config(kv_cache_config())
        worker.compile_or_warm_up_model()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._in_flight)

    def step(self) -> None:
        """Launch one batch; take the result of one once two are in flight."""
        if self._random.random() < 0.1:
            self.worker.execute_model(self._scheduled({}, [], []))
        if self._random.random() < 0.4 and self._waiting and len(self._running) < 4:
            self._start()
        if self._running:
            scheduled = self._schedule()
            assert self.worker.execute_model(scheduled) is None
            if self._in_flight and self._random.random() < 0.3:
                self._collect()  # structured output: sampling waits for the previous batch
            self._in_flight.append(self.worker.sample_tokens(None))
        if len(self._in_flight) >= 2 or (self._in_flight and not self._running):
            self._collect()
        if not self._running and not self._waiting and self._finished:
            self.worker.execute_model(self._scheduled({}, [], []))

    def _collect(self) -> None:
        for request, token in self._in_flight.popleft().get_output().items():
            self.tokens.setdefault(request, []).append(token)

    def _start(self) -> None:
        name, tokens = self._waiting.pop()
        self._running[name] = SimpleNamespace(blocks=[], at=0, end=tokens, new=True)

    def _schedule(self) -> Any:
        new, cached, slots = [], [], {}
        for name, request in list(self._running.items()):
            added = []
            if request.at // BLOCK_TOKENS >= len(request.blocks):
                added = [self._free.pop(self._random.randrange(len(self._free)))]
                request.blocks += added
            if request.new:
                new.append(
                    SimpleNamespace(
                        req_id=name, block_ids=(list(request.blocks),), num_computed_tokens=0
                    )
                )
            else:
                cached.append((name, added, request.at))
            slots[name] = (list(request.blocks), request.at)
            request.new = False
            request.at += 1
        scheduled = self._scheduled(slots, new, cached)
        for name, request in list(self._running.items()):
            if request.at >= request.end:
                self._free += self._running.pop(name).blocks
                self._finished.add(name)
        return scheduled

    def _scheduled(self, slots: Any, new: Any, cached: Any) -> Any:
        finished, self._finished = self._finished, set()
        return SimpleNamespace(
            total_num_scheduled_tokens=len(slots),
            slots=slots,
            finished_req_ids=finished,
            scheduled_new_reqs=new,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[name for name, _, _ in cached],
                new_block_ids=[(added,) if added else None for _, added, _ in cached],
                num_computed_tokens=[at for _, _, at in cached],
                resumed_req_ids=set(),
            ),
        )


@contextmanager
def running(worker_class: Any, config: Any, **engine: Any) -> Any:
    """An engine over a worker of ``worker_class``, shut down in the end."""
    worker = worker_class(config, seed=engine["seed"])
    try:
        yield Engine(worker, **engine)
    finally:
        worker.shutdown()
