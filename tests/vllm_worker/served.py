"""vLLM's own scheduler with a made-up runner, and what gpupool makes of its steps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1 import kv_cache_interface as interface
from vllm.v1.core.kv_cache_utils import (
    get_request_block_hasher,
    init_none_hash,
)
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from gpupool.vllm import compat
from gpupool.vllm.block_use import BlockTables

TOKENS = 16  # in a block
BLOCKS = 26  # for each group: too few for five requests
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


def config_of(checkpoint: Path, *, caching: bool = True, drafts: int = 0) -> VllmConfig:
    model = ModelConfig(
        model=str(checkpoint), skip_tokenizer_init=True, dtype="float32", max_model_len=512
    )
    speculative = None
    if drafts:
        speculative = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=drafts,
            prompt_lookup_max=3,
            target_model_config=model,
            target_parallel_config=ParallelConfig(),
        )
    return VllmConfig(
        model_config=model,
        scheduler_config=SchedulerConfig(
            max_num_batched_tokens=96,
            max_num_seqs=8,
            max_model_len=512,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        cache_config=CacheConfig(block_size=TOKENS, enable_prefix_caching=caching),
        parallel_config=ParallelConfig(),
        speculative_config=speculative,
        device_config=DeviceConfig("cpu"),
    )


def groups_of(*specs: Any) -> interface.KVCacheConfig:
    """Groups of one layer, over each other as vLLM lays them."""
    page = max(spec.page_size_bytes for spec in specs)
    blocks = BLOCKS * len(specs)
    return interface.KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=[
            interface.KVCacheTensor(
                size=blocks * page, layers=[f"l{i}"], layer_stride=page * blocks, block_stride=page
            )
            for i, _ in enumerate(specs)
        ],
        kv_cache_groups=[
            interface.KVCacheGroupSpec([f"l{i}"], spec) for i, spec in enumerate(specs)
        ],
    )


class Served:
    """The scheduler of an engine, what its runner would write, and what gpupool makes of it."""

    def __init__(
        self, config: VllmConfig, kept: interface.KVCacheConfig, rng: random.Random
    ) -> None:
        self._rng = rng
        config.cache_config.num_gpu_blocks = kept.num_blocks
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
        self.tables = BlockTables(
            compat.block_tokens(kept),
            compat.draft_tokens(config),
            keeps_finished=compat.caches_prefixes(config),
        )
        self._drafts = config.num_speculative_tokens
        self.accepted = 0
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
        ends = (group[at[n] // TOKENS :] for n in at for group in self.known[n])
        assert use.written == {block for end in ends for block in end}, "and no full block"
        drafted = out.scheduled_spec_decode_tokens
        for name, count in out.num_scheduled_tokens.items():
            self._compute(name, at[name], count, drafted.get(name, []), use)
        ids = list(out.num_scheduled_tokens)
        answer = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: i for i, name in enumerate(ids)},
            sampled_token_ids=[
                self._sampled(name, at[name] + out.num_scheduled_tokens[name], drafted.get(name))
                for name in ids
            ],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.scheduler.update_from_output(out, answer)
        if self._drafts:
            coming = [[self._rng.randrange(1000) for _ in range(self._drafts)] for _ in ids]
            self.scheduler.update_draft_token_ids(DraftTokenIds(ids, coming))
        return out

    def _sampled(self, name: str, until: int, drafted: list[int] | None) -> list[int]:
        """Some of the drafts, and one token more."""
        if until < self.requests[name].num_tokens:
            return []  # of a prompt that is not all there
        accepted = (drafted or [])[: self._rng.randint(0, len(drafted or []))]
        self.accepted += len(accepted)
        return [*accepted, 7 + len(name)]

    def _compute(self, name: str, at: int, count: int, drafted: list[int], use: Any) -> None:
        tokens = [*self.requests[name].all_token_ids, *drafted]
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
