"""Everything that depends on the version or platform of vLLM, and nothing else."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from gpupool.errors import UsageError
from gpupool.kernels.layout import BlockLayout


def platform_worker() -> type[Any]:
    """The worker class that vLLM itself would use here. Raises UsageError off CUDA and CPU."""
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
    elif current_platform.is_cuda():
        from vllm.v1.worker.gpu_worker import Worker as PlatformWorker
    else:
        raise UsageError(f"gpupool runs on vLLM's CUDA and CPU platforms, not {current_platform}")
    worker: type[Any] = PlatformWorker
    return worker


def prepare_process() -> None:
    """Before any model is loaded in this process."""
    if current_platform.is_cpu():
        # With oneDNN every linear weight is repacked into an opaque handle that cannot be moved;
        # without, torch multiplies by the parameter itself.
        import vllm._custom_ops as custom_ops

        custom_ops._supports_onednn = False


def waive_free_memory_check(vllm_config: Any) -> None:
    """Before the device is opened: what is free on it is the pool's affair.

    vLLM refuses to start when less than a share of the device is free, whatever its own KV cache's
    size, and the pool holds that memory for all its engines.
    """
    vllm_config.cache_config.gpu_memory_utilization = 0.001


def runs_in_child_process() -> bool:
    """Whether an ``LLM`` of this configuration runs its engine in a process of its own."""
    import vllm.envs as envs

    return bool(envs.VLLM_ENABLE_V1_MULTIPROCESSING)


def forget_shared_tensors() -> None:
    """Before each load: a tensor cached by vLLM must not become part of two models."""
    from vllm.model_executor.layers import rotary_embedding

    rotary_embedding._ROPE_DICT.clear()


def step_timeout_s() -> float:
    """How long vLLM waits for one step of a worker before it gives the engine up."""
    import vllm.envs as envs

    return float(envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS)


def block_layout(kv_cache_config: Any, size_bytes: int) -> tuple[BlockLayout, str] | None:
    """Where block b of the KV cache lies in ``size_bytes`` of memory, and the dtype of its values.

    None where not all of the state is in blocks of tokens that are written once (Mamba and linear
    attention, rings, an encoder's, sinks), where a hit may be computed anew, or where the pieces
    that vLLM tells of are not all there is of a block, as with heads outside of blocks.
    """
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
        UniformTypeKVCacheSpecs,
    )

    # Not their subclasses: each of these has rules of its own for what a step writes.
    plain = (FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec, ChunkedLocalAttentionSpec)
    specs: dict[str, Any] = {}
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        for layer in group.layer_names:
            uniform = isinstance(spec, UniformTypeKVCacheSpecs)
            specs[layer] = spec.kv_cache_specs[layer] if uniform else spec
    pieces: list[tuple[int, int, int]] = []
    dtypes: set[str] = set()
    for tensor in kv_cache_config.kv_cache_tensors:
        for index, layer in enumerate(tensor.layers):
            spec = specs.get(layer)
            if spec is None or type(spec) not in plain or spec.prefix_replay_tokens > 0:
                return None
            offset = tensor.offset + index * tensor.layer_stride
            pieces.append((offset, tensor.block_stride, spec.page_size_bytes))
            dtypes.add(str(spec.dtype).removeprefix("torch."))
    if not pieces:
        return None
    try:
        # Groups of layers lie over each other: a block belongs to one of them at a time.
        layout = BlockLayout.merged(pieces, kv_cache_config.num_blocks)
    except UsageError:
        return None
    if layout.row_bytes * layout.blocks != size_bytes or layout.extent_bytes != size_bytes:
        return None
    return layout, "+".join(sorted(dtypes))


def block_tokens(kv_cache_config: Any) -> list[int]:
    """Tokens in a block, per KV cache group."""
    return [int(group.kv_cache_spec.block_size) for group in kv_cache_config.kv_cache_groups]


def draft_tokens(vllm_config: Any) -> int:
    """How many of the tokens that a step is told are computed it may compute again.

    They are drafts that count as accepted until they are known not to be, as when steps are
    scheduled ahead, or what a drafting model writes back, or a canvas of diffusion.
    """
    drafts = vllm_config.speculative_config
    ahead = vllm_config.scheduler_config.async_scheduling is not False
    if drafts is not None and drafts.method in ("ngram", "suffix") and not ahead:
        return 0  # looked up in the text, by no model
    return int(vllm_config.num_speculative_tokens)


def caches_prefixes(vllm_config: Any) -> bool:
    """Whether blocks of finished requests may be read again."""
    return vllm_config.cache_config.enable_prefix_caching is not False


def unsupported(vllm_config: Any) -> str | None:
    """Why an engine of this configuration cannot join a pool, or None."""
    parallel = vllm_config.parallel_config
    if parallel.world_size > 1:
        return "tensor and pipeline parallel engines are not supported yet: use one device"
    if parallel.data_parallel_size > 1:
        return "data parallel engines are not supported yet: start one engine per model"
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        return "context parallel engines are not supported yet"
    cache = vllm_config.cache_config
    if cache.kv_cache_memory_bytes is None:
        return "a pooled engine needs its KV cache's size: give --kv-cache-memory-bytes"
    if (
        vllm_config.kv_transfer_config is not None
        or getattr(vllm_config, "ec_transfer_config", None) is not None
        or getattr(cache, "kv_offloading_size", None) is not None
    ):
        # Their writes pass neither the gate nor the scheduler's output.
        return "KV connectors and KV offloading cannot be used with a pooled engine"
    return None
