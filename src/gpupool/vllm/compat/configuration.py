"""What gpupool reads of a configuration of vLLM."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


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
    if parallel.world_size > parallel.tensor_parallel_size:
        return "pipeline parallel engines are not supported yet: use tensor parallel ones"
    if getattr(parallel, "nnodes", 1) > 1:
        return "engines on several machines are not supported yet: use the devices of one"
    if parallel.data_parallel_size > 1:
        return "data parallel engines are not supported yet: start one engine per model"
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        return "context parallel engines are not supported yet"
    if parallel.enable_eplb:  # which moves experts' weights inside steps, and nobody is told
        return "engines that balance their experts' load cannot be pooled: leave --enable-eplb out"
    model = vllm_config.model_config
    # Of vLLM's own sleep, which a pooled engine's is not; 0.26 has neither.
    if getattr(model, "sleep_mode_offload_cudagraph", False):
        return (
            "CUDA graphs of a pooled engine leave with its model and not by vLLM's sleep: leave "
            "--sleep-mode-offload-cudagraph out, and give 'cudagraph_bytes'"
        )
    if getattr(model, "enable_nccl_comm_suspend", False):
        return (
            "the communicators of a pooled engine stay while it sleeps: leave "
            "--enable-nccl-comm-suspend out"
        )
    offload = getattr(vllm_config, "offload_config", None)
    if offload is not None and (
        offload.uva.cpu_offload_gb > 0 or offload.prefetch.offload_group_size > 0
    ):
        # Steps read those weights from the host; in the pool they would be on the device.
        return (
            "weights that vLLM offloads to the host cannot be in a pool: leave --cpu-offload-gb "
            "and --offload-group-size out, since a pooled engine's weights leave as a whole"
        )
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


class Place(NamedTuple):
    """A worker's place in its engine."""

    rank: int
    ranks: int
    engine: str
    """A word that the workers of one engine, and no others, have in common."""


def place(vllm_config: Any) -> Place:
    """The place of the worker that was given this configuration."""
    parallel = vllm_config.parallel_config
    return Place(parallel.rank, parallel.world_size, str(vllm_config.instance_id))


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
