"""Everything that depends on the version or platform of vLLM, and nothing else.

Runs with 0.32, and on the Python of 0.33 over the libraries of 0.32. Where the sources of 0.26
differ, it is written for them too, and has not run there.
"""

from __future__ import annotations

from gpupool.vllm.compat.configuration import (
    caches_prefixes,
    checkpoint_folder,
    draft_tokens,
    place,
    rank_name,
    unsupported,
    weight_factors,
)
from gpupool.vllm.compat.kv_cache import (
    KvAllocations,
    block_layout,
    block_tokens,
    kv_allocations,
)
from gpupool.vllm.compat.platform import (
    device_name,
    empty_cache,
    graphs_captured_into,
    make_workspaces,
    platform_worker,
    prepare_process,
    runs_in_child_process,
    start_timeout_s,
    step_timeout_s,
    torch_bytes,
    version,
    wait_for_device,
    waive_free_memory_check,
)
from gpupool.vllm.compat.weights import (
    KnownLayers,
    forget_shared_tensors,
    loader_within,
    not_for_images,
    process_again,
    safetensors_read_by,
    without_sleep_mode,
)
from gpupool.vllm.compat.workspaces import OwnWorkspaces

__all__ = [
    "KnownLayers",
    "KvAllocations",
    "OwnWorkspaces",
    "block_layout",
    "block_tokens",
    "caches_prefixes",
    "checkpoint_folder",
    "device_name",
    "draft_tokens",
    "empty_cache",
    "forget_shared_tensors",
    "graphs_captured_into",
    "kv_allocations",
    "loader_within",
    "make_workspaces",
    "not_for_images",
    "place",
    "platform_worker",
    "prepare_process",
    "process_again",
    "rank_name",
    "runs_in_child_process",
    "safetensors_read_by",
    "start_timeout_s",
    "step_timeout_s",
    "torch_bytes",
    "unsupported",
    "version",
    "wait_for_device",
    "waive_free_memory_check",
    "weight_factors",
    "without_sleep_mode",
]
