"""The platform that vLLM runs on, and its process."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.platforms import current_platform

from gpupool.errors import UsageError
from gpupool.vllm.compat.workspaces import keep_workspaces_apart

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, so that it is shown

_OTHER_ALL_REDUCES = (
    "VLLM_ALLREDUCE_USE_SYMM_MEM",
    "VLLM_USE_NCCL_SYMM_MEM",
    "VLLM_ALLREDUCE_USE_FLASHINFER",
    "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC",  # not in 0.26
)


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


def prepare_process(vllm_config: Any) -> None:
    """Before any model is loaded in this process."""
    if current_platform.is_cuda():
        keep_workspaces_apart()
        if vllm_config.parallel_config.world_size > 1:
            _reduce_by_nccl_alone(vllm_config)
    if current_platform.is_cpu():
        # With oneDNN every linear weight is repacked into an opaque handle that cannot be moved;
        # without, torch multiplies by the parameter itself.
        import vllm._custom_ops as custom_ops

        custom_ops._supports_onednn = False
        custom_ops.create_onednn_scaled_mm = _refuse_packed


def _reduce_by_nccl_alone(vllm_config: Any) -> None:
    # The others would take up addresses of memory that comes and goes, which nobody has tried;
    # those of FlashInfer have no fixed order either.
    import vllm.envs as envs
    from vllm.distributed.device_communicators import flashinfer_all_reduce

    vllm_config.parallel_config.disable_custom_all_reduce = True
    vllm_config.compilation_config.pass_config.fuse_allreduce_rms = False
    # Some models call the fused one themselves, where there is a workspace for it.
    flashinfer_all_reduce.get_fi_ar_workspace = _no_workspace
    os.environ["NCCL_GRAPH_REGISTER"] = "0"
    for name in _OTHER_ALL_REDUCES:
        if name in envs.environment_variables:
            os.environ[name] = "0"


def _no_workspace(*args: Any, **kwargs: Any) -> None:
    return None


def _refuse_packed(*args: Any, **kwargs: Any) -> Any:
    # What it makes keeps the addresses of scales that are then moved: it would answer nonsense.
    raise UsageError(
        "8-bit integer weights cannot be pooled on a CPU: oneDNN keeps a packed copy of them that "
        "cannot be moved; load this model without gpupool, or in another format"
    )


def waive_free_memory_check(vllm_config: Any) -> None:
    """Before the device is opened: what is free on it is the pool's affair.

    vLLM refuses to start when less than a share of the device is free, whatever its own KV cache's
    size, and the pool holds that memory for all its engines.
    """
    vllm_config.cache_config.gpu_memory_utilization = 0.001


@contextmanager
def graphs_captured_into(pool: tuple[int, int]) -> Iterator[None]:
    """Have what is made in this ``with`` block capture its CUDA graphs into a pool of torch.

    Whatever captures asks the platform once, as it is made. Graphs of encoders have pools of their
    own.
    """
    own = type(current_platform)
    before = own._global_graph_pool
    own._global_graph_pool = pool
    try:
        yield
    finally:
        own._global_graph_pool = before


def runs_in_child_process() -> bool:
    """Whether an ``LLM`` of this configuration runs its engine in a process of its own."""
    import vllm.envs as envs

    return bool(envs.VLLM_ENABLE_V1_MULTIPROCESSING)


def wait_for_device(worker: Any) -> None:
    """Until the device has done what was asked of it; workers of 0.26 have no such method."""
    wait = getattr(worker, "synchronize_device", None)
    if wait is not None:
        wait()
    elif torch.accelerator.is_available():
        torch.accelerator.synchronize()


def make_workspaces() -> None:
    """Have torch take now what its matrix products keep, of this thread and stream, for good.

    Giving it back later would take it from graphs that other engines of the process have captured.
    """
    torch.cuda.current_blas_handle()
    some = torch.zeros(16, 16, dtype=torch.float16, device="cuda")
    torch.nn.functional.linear(some, some, some[0])  # which cuBLASLt does, with one of its own


def empty_cache() -> None:
    """Have torch give back what it has cached, which it refuses while anything is captured.

    So it does while another engine of this process allocates in a pool of torch, or once a capture
    could not end: no reason for a model to stay.
    """
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        logger.warning("gpupool: torch keeps what it has cached for now: %s", error)


def torch_bytes(device: torch.device) -> int:
    """What torch has of a GPU, once it has given back what it only caches.

    What its pools have by allocators of their own is in it as well: by its sources
    (``alloc_block`` and ``release_block`` of CUDACachingAllocator) a segment counts as reserved
    whoever has allocated it.
    """
    empty_cache()
    return int(torch.cuda.memory_reserved(device))


def step_timeout_s() -> float:
    """How long vLLM waits for one step of a worker before it gives the engine up."""
    import vllm.envs as envs

    return float(envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS)


def start_timeout_s() -> float:
    """How long vLLM waits for an engine to be ready."""
    import vllm.envs as envs

    return float(envs.VLLM_ENGINE_READY_TIMEOUT_S)


def version() -> str:
    """Of vLLM."""
    from vllm import __version__

    return str(__version__)


def device_name(vllm_config: Any) -> str:
    """What weights are processed for: of a GPU its kind, of a CPU its instruction sets."""
    if current_platform.is_cpu():
        # By these vLLM chooses how it packs weights.
        found = sorted(n for n, has in torch.cpu.get_capabilities().items() if has is True)
        return f"cpu {platform.machine()} {' '.join(found)}"
    index = vllm_config.device_config.device.index or 0
    return (
        f"{current_platform.device_type} {current_platform.get_device_name(index)} "
        f"{current_platform.get_device_capability(index)} {torch.version.cuda}"
    )
