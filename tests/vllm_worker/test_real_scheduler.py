"""What vLLM's own scheduler gives out, and vLLM's own layouts, as the worker understands them."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from served import (
    FULL,
    LATENT,
    REPLAYED,
    RING,
    TOKENS,
    WINDOW,
    Served,
    config_of,
    groups_of,
)
from vllm.v1 import kv_cache_interface as interface
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.request import RequestStatus

from demo.checkpoints import write_llama
from gpupool.vllm import compat


def _planned(config: Any, specs: dict[str, Any], memory_bytes: int) -> Any:
    """How vLLM lays the KV cache of an engine."""
    try:
        from vllm.v1.core import kv_cache_planning as planning
    except ImportError:  # before 0.33
        from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

        (kept,) = get_kv_cache_configs(config, [specs], [memory_bytes])
        return kept
    groups = planning.get_global_kv_cache_groups(config, [specs])
    (kept,) = planning.get_kv_cache_configs(config, [specs], [memory_bytes], groups)
    return kept


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("checkpoint") / "m", seed=1)


@pytest.mark.parametrize(
    "specs",
    [(FULL,), (LATENT,), (WINDOW,), (FULL, WINDOW)],
    ids=["full", "latent", "window", "hybrid"],
)
@pytest.mark.parametrize("caching", [True, False], ids=["caching", "not caching"])
@pytest.mark.parametrize("drafts", [0, 5], ids=["plain", "drafts"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_read_that_was_forgotten_or_written_unannounced(
    checkpoint: Path, specs: tuple[Any, ...], caching: bool, drafts: int, seed: int
) -> None:
    """Prefix hits, chunks, preemption, aborts and reuse of blocks, by vLLM's own scheduler."""
    kept = groups_of(*specs)
    page = max(spec.page_size_bytes for spec in specs)
    assert compat.block_layout(kept, kept.num_blocks * page) is not None
    rng = random.Random(seed)
    served = Served(config_of(checkpoint, caching=caching, drafts=drafts), kept, rng)
    shared = [rng.randrange(1000) for _ in range(150)]
    hits = resumed = number = lost = 0
    for _ in range(120):
        while len(served.scheduler.requests) < 5:
            number += 1
            prompt = shared[: rng.choice((40, 100, 150))] if rng.random() < 0.6 else []
            prompt = prompt + [rng.randrange(1000) for _ in range(rng.randint(1, 60))]
            served.ask(f"r{number}", prompt)
        out = served.step()
        hits += sum(new.num_computed_tokens > 0 for new in out.scheduled_new_reqs)
        resumed += len(out.scheduled_cached_reqs.resumed_req_ids)
        if rng.random() < 0.03:
            name = rng.choice(sorted(served.scheduler.requests))
            served.scheduler.finish_requests([name], _aborted())
        for name, request in list(served.scheduler.requests.items()):
            if request.status == RequestStatus.PREEMPTED and rng.random() < 0.5:
                served.scheduler.finish_requests([name], _aborted())
                lost += 1
    assert hits > 5 or not caching
    assert (served.accepted > 5) == (drafts > 0)
    assert lost > 0 or WINDOW in specs
    print(f"requests={number} hits={hits} resumed={resumed} aborted while preempted={lost}")


def _aborted() -> RequestStatus:
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
    kept = _planned(config, {f"l{i}": spec for i in range(4)}, 1 << 24)
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
    kept = groups_of(*specs)
    assert compat.block_layout(kept, kept.num_blocks * page) is None


def test_what_is_asked_of_a_configuration_is_there(checkpoint: Path) -> None:
    assert compat.draft_tokens(config_of(checkpoint, drafts=3)) == 0
    ahead = config_of(checkpoint, drafts=3)
    ahead.scheduler_config.async_scheduling = True
    assert compat.draft_tokens(ahead) == 3
    ahead.scheduler_config.async_scheduling = False
    ahead.speculative_config.method = "draft_model"
    assert compat.draft_tokens(ahead) == 3
    config = config_of(checkpoint)
    assert compat.draft_tokens(config) == 0
    config.diffusion_config = SimpleNamespace(canvas_length=5)
    assert compat.draft_tokens(config) == 5  # a canvas may be taken back as drafts may
    assert compat.caches_prefixes(config)
    config.cache_config.enable_prefix_caching = False
    assert not compat.caches_prefixes(config)
