"""The workers and model runners of vLLM that gpupool's worker is, or has, one of."""

from __future__ import annotations

from gpupool.vllm.hooks.hook import Hook, Need, names_of

WORKERS = (("vllm.v1.worker.cpu_worker", "CPUWorker"), ("vllm.v1.worker.gpu_worker", "Worker"))


def _worker(module: str, name: str, runner: Hook) -> tuple[Hook, ...]:
    calls: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("__init__", ("vllm_config",)),
        ("init_device", ()),
        ("load_model", ()),
        ("determine_available_memory", ()),
        ("compile_or_warm_up_model", ()),
        ("execute_model", ("scheduler_output",)),
        ("sample_tokens", ("grammar_output",)),
        ("sleep", ("level",)),
        ("wake_up", ("tags",)),
        ("shutdown", ()),
        ("_maybe_get_memory_pool_context", ("tag",)),
    )
    allocates = Hook(
        module,
        f"{name}.initialize_from_config",
        ("kv_cache_config",),
        ("_maybe_get_memory_pool_context", "kv_cache"),
    )
    own = tuple(Hook(module, f"{name}.{method}", taken) for method, taken in calls)
    return (*own, allocates, *names_of(module, "vllm_config model_runner", of=name), runner)


# What a GPU takes by default, for nearly all models or those without experts.
_V2 = "vllm.v1.worker.gpu.model_runner"
_COMMUNICATORS = "vllm.distributed.device_communicators"
_WORKSPACE = "vllm.v1.worker.workspace"

WORKER_NEEDS: tuple[Need, ...] = (
    Need(
        "the CPU platform's worker",
        {
            "": _worker(
                *WORKERS[0], Hook("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.get_model")
            )
        },
    ),
    Need(
        "the CUDA platform's worker",
        {
            "": _worker(
                *WORKERS[1], Hook("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.get_model")
            )
        },
    ),
    Need(
        "the second model runner of GPUs",
        {
            "": (
                Hook(_V2, "GPUModelRunner.get_model"),
                Hook(_V2, "GPUModelRunner.load_model"),
                Hook(_V2, "GPUModelRunner.execute_model", ("scheduler_output",)),
                Hook(_V2, "GPUModelRunner.sample_tokens", ("grammar_output",)),
                Hook(
                    _V2,
                    "GPUModelRunner.initialize_kv_cache",
                    ("kv_cache_config",),
                    ("init_kv_cache",),
                ),
            )
        },
    ),
    Need(
        "which platform it is, and where it captures CUDA graphs",
        {
            "": (
                Hook("vllm.platforms", "current_platform"),
                *names_of(
                    "vllm.platforms.interface",
                    "is_cpu is_cuda device_type get_device_name get_device_capability "
                    "_global_graph_pool",
                    of="Platform",
                ),
            )
        },
    ),
    Need(
        "that either runner captures CUDA graphs where the platform says",
        {
            "": tuple(
                Hook(module, f"{name}.__init__", says=("get_global_graph_pool",))
                for module, name in (
                    ("vllm.compilation.cuda_graph", "CUDAGraphWrapper"),
                    ("vllm.compilation.breakable_cudagraph", "BreakableCUDAGraphWrapper"),
                    ("vllm.v1.worker.gpu.cudagraph_utils", "CudaGraphManager"),
                )
            )
        },
        without="their memory may be outside of the pool",
    ),
    Need(
        "all-reduces of several GPUs by NCCL alone",
        {
            "": (
                *names_of(
                    "vllm.envs",
                    "VLLM_ALLREDUCE_USE_SYMM_MEM VLLM_USE_NCCL_SYMM_MEM "
                    "VLLM_ALLREDUCE_USE_FLASHINFER",
                    of="environment_variables",
                ),
                Hook(
                    f"{_COMMUNICATORS}.cuda_communicator",
                    "CudaCommunicator.__init__",
                    says=("VLLM_ALLREDUCE_USE_SYMM_MEM", "VLLM_ALLREDUCE_USE_FLASHINFER"),
                ),
                Hook(f"{_COMMUNICATORS}.flashinfer_all_reduce", "get_fi_ar_workspace"),
                Hook(
                    "vllm.model_executor.layers.fused_allreduce_gemma_rms_norm",
                    "_can_use_flashinfer",
                    says=("get_fi_ar_workspace",),
                ),
                *names_of(
                    "vllm.config.compilation",
                    "CompilationConfig.pass_config PassConfig.fuse_allreduce_rms",
                ),
            )
        },
    ),
    Need(
        "scratch memory of layers, of which each engine of a process has its own",
        {
            "": (
                *names_of(_WORKSPACE, "WorkspaceManager _manager init_workspace_manager"),
                Hook(_WORKSPACE, "current_workspace_manager", says=("_manager",)),
                Hook(_WORKSPACE, "lock_workspace", says=("current_workspace_manager",)),
                Hook(_WORKSPACE, "reset_workspace_manager"),
                *names_of(WORKERS[1][0], "init_workspace_manager"),
                *(
                    Hook(module, name, says=("reset_workspace_manager",))
                    for module, name in (
                        ("vllm.v1.worker.gpu.shutdown", "free_before_shutdown"),
                        ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.shutdown"),
                    )
                ),
            )
        },
    ),
)
