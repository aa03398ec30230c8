"""Everything that depends on the version or platform of vLLM, and nothing else."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
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
        custom_ops.create_onednn_scaled_mm = _refuse_packed


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


def rank_name(vllm_config: Any) -> str:
    """Which part of the model the worker has."""
    parallel = vllm_config.parallel_config
    return f"{parallel.rank} of {parallel.world_size}"


def weight_factors(vllm_config: Any) -> dict[str, object]:
    """What of a configuration and the environment alters processed weights.

    More than that, by vLLM's own digests of what alters its graphs: what is in here and does not
    matter costs no more than an image that is made anew. Ask before weights are loaded, since that
    may change a configuration.
    """
    import vllm.envs as envs

    model = vllm_config.model_config
    factors: dict[str, object] = {
        "environment": envs.compile_factors(),
        # vLLM's digest of a graph leaves these out.
        "packing": {
            name: read() for name, read in envs.environment_variables.items() if "PREPACK" in name
        },
        "hf_config": model.hf_config.to_dict(),
        "dtype": str(model.dtype),
        "quantization": [str(model.quantization), str(model.quantization_config)],
        "convert": str(getattr(model, "convert_type", None)),
        "revision": [str(model.revision), str(model.code_revision)],
        "extra": vllm_config.load_config.model_loader_extra_config,
    }
    for name in ("model", "cache", "parallel", "attention", "kernel", "offload", "lora",
                 "speculative", "device"):  # fmt: skip
        part = getattr(vllm_config, f"{name}_config", None)
        factors[name] = None if part is None else part.compute_hash()
    return factors


def checkpoint_folder(vllm_config: Any) -> str | None:
    """Where the checkpoint is on this machine, without asking any other; None if it is not."""
    model = vllm_config.model_config
    if os.path.isdir(model.model):  # noqa: PTH112 a name, which need not be a path
        return str(model.model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(
            snapshot_download(
                model.model,
                revision=model.revision,
                cache_dir=vllm_config.load_config.download_dir,
                local_files_only=True,
            )
        )
    except (HFValidationError, HfHubHTTPError, OSError, ValueError):
        return None


def not_for_images(module: Any) -> str | None:
    """Why the processed weights of a module cannot be taken as they are, or None."""
    for name, child in module.named_modules():
        method = getattr(child, "quant_method", None)
        if isinstance(method, QuantizeMethodBase) and not getattr(
            method, "supports_pre_processed_weights", False
        ):
            kind = type(method).__name__
            return f"vLLM cannot take up processed weights of {kind} (layer {name!r})"
    if getattr(module, "secondary_weights", ()):
        return "some of its weights come from another checkpoint"
    return None


def process_again(module: Any, model_config: Any, device: Any) -> None:
    """Let vLLM make what goes with weights that are processed already."""
    from vllm.model_executor.model_loader.utils import process_weights_after_loading
    from vllm.model_executor.utils import weights_already_processed

    with weights_already_processed():
        process_weights_after_loading(module, model_config, device)


class KnownLayers:
    """The layers that a configuration knows, which a model enters as it is made."""

    def __init__(self, vllm_config: Any) -> None:
        """As they are now."""
        self._config = vllm_config.compilation_config
        self._layers = dict(self._config.static_forward_context)
        self._experts = list(self._config.static_all_moe_layers)

    def put_back(self) -> None:
        """Forget a model that was made since, so that it can be made again."""
        self._config.static_forward_context.clear()
        self._config.static_forward_context.update(self._layers)
        self._config.static_all_moe_layers[:] = self._experts
        forget_shared_tensors()
