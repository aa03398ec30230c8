"""Every place in vLLM that gpupool calls, reads, replaces, or is called from."""

from __future__ import annotations

from collections.abc import Iterator

from gpupool.vllm.hooks.hook import Hook, Need, names_of
from gpupool.vllm.hooks.workers import WORKER_NEEDS

_CACHE = "vllm.v1.kv_cache_interface"
# Of each of the two model runners what has the cache allocated.
_ALLOCATING = (
    ("vllm.v1.worker.gpu.attn_utils", "init_kv_cache"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.initialize_kv_cache_tensors"),
)
_OUTPUT = "vllm.v1.core.sched.output"
_LOADER = "vllm.model_executor.model_loader"
_DEFAULT = f"{_LOADER}.default_loader"
_LOADS = ("vllm_config", "model_config", "prefix")
_QUANTIZATION = "vllm.model_executor.layers.quantization.base_config"
_SETTINGS = (
    "VLLM_ENABLE_V1_MULTIPROCESSING VLLM_ENGINE_READY_TIMEOUT_S VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
)
_SLEEP = "vllm.device_allocator.sleep_mode_backend"

NEEDS: tuple[Need, ...] = (
    *WORKER_NEEDS,
    Need(
        "waiting for the device as vLLM does",
        {"": (Hook("vllm.v1.worker.worker_base", "WorkerBase.synchronize_device"),)},
        without="torch is asked to wait",
    ),
    Need(
        "linear weights on a CPU that can be moved",
        {"": names_of("vllm._custom_ops", "_supports_onednn create_onednn_scaled_mm")},
    ),
    Need(
        "settings of the environment",
        {"": names_of("vllm.envs", _SETTINGS, of="environment_variables")},
    ),
    Need(
        "the configuration",
        {
            "": (
                *names_of(
                    "vllm.config.vllm",
                    "additional_config model_config cache_config parallel_config "
                    "scheduler_config device_config load_config speculative_config offload_config "
                    "compilation_config kv_transfer_config num_speculative_tokens "
                    "instance_id",
                    of="VllmConfig",
                ),
                *names_of(
                    "vllm.config.parallel",
                    "world_size tensor_parallel_size data_parallel_size rank nnodes "
                    "disable_custom_all_reduce",
                    of="ParallelConfig",
                ),
                *names_of(
                    "vllm.config.cache",
                    "kv_cache_memory_bytes enable_prefix_caching gpu_memory_utilization",
                    of="CacheConfig",
                ),
                *names_of("vllm.config.model", "enable_sleep_mode", of="ModelConfig"),
                *names_of("vllm.config.scheduler", "async_scheduling", of="SchedulerConfig"),
                *names_of("vllm.config.offload", "uva prefetch", of="OffloadConfig"),
                *names_of(
                    "vllm.config.offload",
                    "UVAOffloadConfig.cpu_offload_gb PrefetchOffloadConfig.offload_group_size",
                ),
                *names_of(
                    "vllm.config.compilation",
                    "static_forward_context static_all_moe_layers",
                    of="CompilationConfig",
                ),
            )
        },
    ),
    Need(
        "what vLLM's own sleep does besides, which is refused",
        {
            "": names_of(
                "vllm.config.model",
                "sleep_mode_offload_cudagraph enable_nccl_comm_suspend",
                of="ModelConfig",
            )
        },
        without="there is nothing to refuse",
    ),
    Need(
        "which blocks a step uses",
        {
            "": (
                *names_of(
                    _OUTPUT,
                    "scheduled_new_reqs scheduled_cached_reqs finished_req_ids "
                    "total_num_scheduled_tokens",
                    of="SchedulerOutput",
                ),
                *names_of(_OUTPUT, "req_id block_ids num_computed_tokens", of="NewRequestData"),
                *names_of(
                    _OUTPUT,
                    "req_ids resumed_req_ids new_block_ids num_computed_tokens",
                    of="CachedRequestData",
                ),
            )
        },
    ),
    Need(
        "what a policy is told of requests",
        {
            "": (
                *names_of(_OUTPUT, "num_scheduled_tokens", of="SchedulerOutput"),
                *names_of(_OUTPUT, "prompt_token_ids", of="NewRequestData"),
                *names_of(_OUTPUT, "num_output_tokens", of="CachedRequestData"),
            )
        },
    ),
    Need(
        "which blocks a step zeroes or copies",
        {
            "": (
                *names_of(
                    _OUTPUT, "new_block_ids_to_zero kv_cache_block_copies", of="SchedulerOutput"
                ),
                *names_of(
                    "vllm.v1.core.kv_cache_utils",
                    "src_block_id dst_block_id",
                    of="KVCacheBlockCopy",
                ),
            )
        },
        without="this vLLM is taken to do neither",
    ),
    Need(
        "what is in the KV cache",
        {
            "": (
                *names_of(
                    _CACHE,
                    "FullAttentionSpec MLAAttentionSpec SlidingWindowSpec "
                    "ChunkedLocalAttentionSpec UniformTypeKVCacheSpecs.kv_cache_specs "
                    "FullAttentionSpec.page_size_bytes FullAttentionSpec.block_size "
                    "FullAttentionSpec.dtype KVCacheConfig.num_blocks "
                    "KVCacheConfig.kv_cache_tensors KVCacheConfig.kv_cache_groups "
                    "KVCacheGroupSpec.layer_names KVCacheGroupSpec.kv_cache_spec",
                ),
            )
        },
    ),
    Need(
        "how the KV cache is allocated",
        {
            "one allocation, as 0.32 makes it": (
                *names_of(
                    _CACHE, "size layers layer_stride block_stride offset", of="KVCacheTensor"
                ),
                Hook(
                    "vllm.v1.worker.utils",
                    "allocate_kv_cache",
                    ("kv_cache_config",),
                    ("zeros", "int8"),
                ),
                *(
                    Hook(module, name, ("kv_cache_config",), ("allocate_kv_cache",))
                    for module, name in _ALLOCATING
                ),
            ),
            "one for each tensor, as 0.26 makes them": (
                *names_of(_CACHE, "size shared_by block_stride offset", of="KVCacheTensor"),
                Hook(
                    "vllm.v1.worker.gpu.attn_utils",
                    "_allocate_kv_cache",
                    ("kv_cache_config",),
                    ("zeros", "int8", "block_stride"),
                ),
                Hook(
                    "vllm.v1.worker.gpu_model_runner",
                    "GPUModelRunner._allocate_kv_cache_tensors",
                    ("kv_cache_config",),
                    ("zeros", "int8", "block_stride"),
                ),
                *names_of(
                    "vllm.v1.attention.backend",
                    "get_kv_cache_shape get_kv_cache_stride_order",
                    of="AttentionBackend",
                ),
            ),
        },
    ),
    Need(
        "tensors that models of a process share",
        {"": names_of("vllm.model_executor.layers.rotary_embedding", "_ROPE_DICT")},
    ),
    Need(
        "when weights are loaded",
        {
            "": (
                Hook(_LOADER, "get_model_loader", ("load_config",)),
                Hook(f"{_LOADER}.base_loader", "BaseModelLoader.load_model", _LOADS),
            )
        },
    ),
    Need("log lines", {"": (Hook("vllm.logger", "init_logger"),)}),
    Need(
        "being found by vLLM",
        {"": (Hook("vllm.plugins", "DEFAULT_PLUGINS_GROUP", says=("vllm.general_plugins",)),)},
    ),
    Need(
        "sleep mode",
        {
            "": (
                Hook(_SLEEP, "SleepModeBackend.suspend", ("level",)),
                Hook(_SLEEP, "SleepModeBackend.resume", ("tags",)),
                *names_of(
                    _SLEEP, "_state is_supported preserves_communicators", of="SleepModeBackend"
                ),
                Hook(_SLEEP, "SleepModeBackendFactory.register_backend", ("name", "class_name")),
            )
        },
    ),
    Need(
        "--load-format gpupool",
        {
            "": (
                Hook(_LOADER, "register_model_loader", ("load_format",)),
                Hook(_DEFAULT, "DefaultModelLoader.load_weights", ("model", "model_config")),
                Hook(_DEFAULT, "DefaultModelLoader.load_model", _LOADS),
                Hook(
                    _DEFAULT,
                    "DefaultModelLoader._get_weights_iterator",
                    ("source",),
                    ("safetensors_weights_iterator", "safetensors_load_strategy"),
                ),
                Hook(
                    f"{_LOADER}.weight_utils",
                    "safetensors_weights_iterator",
                    ("hf_weights_files", "use_tqdm_on_load", "safetensors_load_strategy"),
                ),
                Hook("vllm.utils.torch_utils", "set_default_torch_dtype", ("dtype",)),
                Hook(_QUANTIZATION, "QuantizeMethodBase"),
            )
        },
    ),
    Need(
        "images of processed weights",
        {
            "": (
                Hook(_DEFAULT, "DefaultModelLoader.create_model", _LOADS),
                Hook(
                    f"{_LOADER}.utils",
                    "process_weights_after_loading",
                    ("model", "model_config", "target_device"),
                ),
                Hook("vllm.model_executor.utils", "weights_already_processed"),
                Hook(_QUANTIZATION, "QuantizeMethodBase.supports_pre_processed_weights"),
                *names_of("vllm.envs", "compile_factors environment_variables"),
            )
        },
        without="weights always come from the checkpoint",
    ),
    Need(
        "an engine without a server, to measure profiles",
        {
            "": (
                Hook("vllm.v1.engine.llm_engine", "LLMEngine.from_engine_args"),
                Hook("vllm.engine.arg_utils", "EngineArgs.from_cli_args"),
                Hook("vllm.utils.argparse_utils", "FlexibleArgumentParser"),
                *names_of("vllm.sampling_params", "SamplingParams RequestOutputKind.DELTA"),
            )
        },
    ),
)


def hooks() -> Iterator[Hook]:
    """All of all forms."""
    for need in NEEDS:
        for form in need.forms.values():
            yield from form
