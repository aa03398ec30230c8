"""What vLLM's own scheduler gives out, and vLLM's own layouts, as the worker understands them."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1 import kv_cache_interface as interface
from vllm.v1.core.kv_cache_utils import (
    get_kv_cache_configs,
    get_request_block_hasher,
    init_none_hash,
)
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from demo.checkpoints import write_llama
from gpupool.vllm import compat
from gpupool.vllm.block_use import BlockTables

TOKENS = 16  # in a block
BLOCKS = 48
HEAD = {"num_kv_heads": 1, "head_size": 32, "dtype": torch.float32}
FULL = interface.FullAttentionSpec(block_size=TOKENS, **HEAD)
WINDOW = interface.SlidingWindowSpec(block_size=TOKENS, sliding_window=48, **HEAD)
LATENT = interface.MLAAttentionSpec(block_size=TOKENS, **HEAD)
REPLAYED = interface.SlidingWindowMLASpec(
    block_size=TOKENS, sliding_window=32, bounded_replay=True, **HEAD
)
RING = interface.CircularBufferSpec(
    block_size=8, num_kv_heads=1, head_size=64, head_size_v=0, dtype=torch.float32
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("checkpoint") / "m", seed=1)


def config_of(checkpoint: Path) -> VllmConfig:
    return VllmConfig(
        model_config=ModelConfig(
            model=str(checkpoint), skip_tokenizer_init=True, dtype="float32", max_model_len=512
        ),
        scheduler_config=SchedulerConfig(
            max_num_batched_tokens=96, max_num_seqs=8, max_model_len=512, is_encoder_decoder=False
        ),
        cache_config=CacheConfig(block_size=TOKENS, enable_prefix_caching=True),
        parallel_config=ParallelConfig(),
        device_config=DeviceConfig("cpu"),
    )


def groups_of(*specs: Any) -> interface.KVCacheConfig:
    """Groups of one layer, over each other as vLLM lays them."""
    page = max(spec.page_size_bytes for spec in specs)
    return interface.KVCacheConfig(
        num_blocks=BLOCKS,
        kv_cache_tensors=[
            interface.KVCacheTensor(
                size=BLOCKS * page, layers=[f"l{i}"], layer_stride=page * BLOCKS, block_stride=page
            )
            for i, _ in enumerate(specs)
        ],
        kv_cache_groups=[
            interface.KVCacheGroupSpec([f"l{i}"], spec) for i, spec in enumerate(specs)
        ],
    )


class Served:
    """The scheduler of an engine, what its runner would write, and what gpupool makes of it."""

    def __init__(self, checkpoint: Path, kept: interface.KVCacheConfig) -> None:
        config = config_of(checkpoint)
        config.cache_config.num_gpu_blocks = BLOCKS
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=kept,
            structured_output_manager=StructuredOutputManager(config),
            block_size=TOKENS,
            hash_block_size=TOKENS,
            log_stats=False,
        )
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(TOKENS, sha256)
        self.tables = BlockTables(compat.block_tokens(kept), 0)
        self.known: dict[str, list[list[int]]] = {}
        self.holds: dict[int, tuple[Any, ...]] = {}  # what is in a block: group, place and tokens
        self.requests: dict[str, Request] = {}

    def ask(self, name: str, prompt: list[int]) -> None:
        request = Request(
            request_id=name,
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=12),
            pooling_params=None,
            block_hasher=self._hasher,
        )
        self.requests[name] = request
        self.scheduler.add_request(request)

    def step(self) -> Any:
        """One step; checks that what is read is there and what is written was announced."""
        out = self.scheduler.schedule()
        use = self.tables.step(out)
        for block in use.fresh:  # what is in them may be zeros from now on
            self.holds.pop(block, None)
        at: dict[str, int] = {}
        for new in out.scheduled_new_reqs:
            self.known[new.req_id] = [list(group) for group in new.block_ids]
            at[new.req_id] = new.num_computed_tokens
        cached = out.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            added = cached.new_block_ids[i] or ()
            if name in cached.resumed_req_ids:
                self.known[name] = [[] for _ in self.known[name]]
            for group, ids in zip(self.known[name], added, strict=False):
                group.extend(ids)
            at[name] = cached.num_computed_tokens[i]
        assert {b for n in at for g in self.known[n] for b in g} <= set(use.all_blocks())
        for name, count in out.num_scheduled_tokens.items():
            self._compute(name, at[name], count, use)
        ids = list(out.num_scheduled_tokens)
        answer = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: i for i, name in enumerate(ids)},
            sampled_token_ids=[
                [7 + len(name)] if self._sampled(name, at, out) else [] for name in ids
            ],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.scheduler.update_from_output(out, answer)
        return out

    def _sampled(self, name: str, at: dict[str, int], out: Any) -> bool:
        return at[name] + out.num_scheduled_tokens[name] >= self.requests[name].num_tokens

    def _compute(self, name: str, at: int, count: int, use: Any) -> None:
        tokens = self.requests[name].all_token_ids
        for group, (table, spec) in enumerate(
            zip(self.known[name], self.scheduler.kv_cache_config.kv_cache_groups, strict=True)
        ):
            window = getattr(spec.kv_cache_spec, "sliding_window", None) or 1 << 30
            first = max(0, at - window + 1) // TOKENS
            for place in range(first, -(-(at + count) // TOKENS)):
                block, begins = table[place], place * TOKENS
                before = min(at, begins + TOKENS)
                if before > begins:
                    seen = self.holds.get(block)
                    assert seen is not None, f"{name} reads block {block}, which was forgotten"
                    assert seen[0] == group
                    assert seen[1][: before - begins] == tuple(tokens[begins:before])
                if at + count > begins and before < begins + TOKENS and at < begins + TOKENS:
                    assert block in use.written, f"{name} writes block {block} unannounced"
                    ends = min(at + count, begins + TOKENS)
                    self.holds[block] = (group, tuple(tokens[begins:ends]))


@pytest.mark.parametrize(
    "specs", [(FULL,), (LATENT,), (FULL, WINDOW)], ids=["full", "latent", "hybrid"]
)
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_read_that_was_forgotten_or_written_unannounced(
    checkpoint: Path, specs: tuple[Any, ...], seed: int
) -> None:
    """Prefix hits, chunks, preemption, aborts and reuse of blocks, by vLLM's own scheduler."""
    kept = groups_of(*specs)
    page = max(spec.page_size_bytes for spec in specs)
    assert compat.block_layout(kept, BLOCKS * page) is not None
    served, rng = Served(checkpoint, kept), random.Random(seed)
    shared = [rng.randrange(1000) for _ in range(150)]
    hits = preempted = number = 0
    for _ in range(120):
        while len(served.scheduler.requests) < 5:
            number += 1
            prompt = shared[: rng.choice((40, 100, 150))] if rng.random() < 0.6 else []
            prompt = prompt + [rng.randrange(1000) for _ in range(rng.randint(1, 60))]
            served.ask(f"r{number}", prompt)
        out = served.step()
        hits += sum(new.num_computed_tokens > 0 for new in out.scheduled_new_reqs)
        preempted += len(out.scheduled_cached_reqs.resumed_req_ids)
        if rng.random() < 0.03:
            name = rng.choice(sorted(served.scheduler.requests))
            served.scheduler.finish_requests([name], _aborted())
    assert hits > 5
    print(f"requests={number} hits={hits} preempted={preempted}")


def _aborted() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


@pytest.mark.parametrize("layout", list(KVCacheLayout), ids=lambda layout: layout.name)
def test_in_every_layout_all_bytes_of_a_block_are_moved_or_it_is_kept_whole(
    checkpoint: Path, layout: KVCacheLayout
) -> None:
    config = config_of(checkpoint)
    config.cache_config.kv_cache_layout = layout.name
    spec = interface.FullAttentionSpec(
        block_size=TOKENS, num_kv_heads=4, head_size=64, dtype=torch.float16
    )
    try:
        (kept,) = get_kv_cache_configs(config, [{f"l{i}": spec for i in range(4)}], [1 << 24])
    except Exception as error:
        pytest.skip(f"vLLM itself refuses: {error}")
    size_bytes = kept.num_blocks * 4 * spec.page_size_bytes
    found = compat.block_layout(kept, size_bytes)
    if found is not None:
        assert found[0].row_bytes * kept.num_blocks == size_bytes
    if layout.is_block_compact:
        assert found is not None


@pytest.mark.parametrize(
    "specs", [(LATENT, REPLAYED), (LATENT, RING)], ids=["replayed hits", "a ring"]
)
def test_what_is_not_written_once_is_kept_whole(specs: tuple[Any, ...]) -> None:
    page = max(spec.page_size_bytes for spec in specs)
    assert compat.block_layout(groups_of(*specs), BLOCKS * page) is None


def test_what_is_asked_of_a_configuration_is_there(checkpoint: Path) -> None:
    config = config_of(checkpoint)
    assert compat.draft_tokens(config) == 0
    config.diffusion_config = SimpleNamespace(canvas_length=5)
    assert compat.draft_tokens(config) == 5  # a canvas may be taken back as drafts may
    assert compat.caches_prefixes(config)
    config.cache_config.enable_prefix_caching = False
    assert not compat.caches_prefixes(config)
