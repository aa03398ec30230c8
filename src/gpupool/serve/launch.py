"""The command line and the environment of the daemon and of stock vLLM servers. Pure."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpupool.host_budget.place import machine_memory_bytes
from gpupool.serve.config import ArgValue, ImagesConfig, ModelConfig, ParkingConfig, PoolConfig
from gpupool.serve.failures import ServeError

# vLLM counts an engine step's time from when it is queued. A step here may wait for many turns
# of other models, and the daemon ends a model that does not give way: vLLM must not do so first.
_STEP_TIMEOUT_S = 86_400
# Longer than the router keeps an idle connection, so that the router closes first: a server that
# closes at the moment of a new request would look like a dead one.
_KEEP_ALIVE_S = 3_600


@dataclass(frozen=True)
class Launch:
    """How an engine is started: the command line for a port, its environment, its log."""

    command: Callable[[int], list[str]]
    environment: Mapping[str, str]
    log_path: Path


def device_environment(devices: Sequence[str], inherited: Mapping[str, str]) -> dict[str, str]:
    """What shows processes the pool's GPUs alone, so that daemons and engines mean the same ones.

    Raises ServeError if an ordinal is not among those that CUDA_VISIBLE_DEVICES shows already.
    """
    if not devices[0].startswith("cuda"):
        return {}
    ordinals = [device.partition(":")[2] or "0" for device in devices]
    visible = inherited.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return {"CUDA_VISIBLE_DEVICES": ",".join(ordinals)}
    shown = [name.strip() for name in visible.split(",") if name.strip()]
    for device, ordinal in zip(devices, ordinals, strict=True):
        if int(ordinal) >= len(shown):
            raise ServeError(
                f"pool.device is {device!r} and CUDA_VISIBLE_DEVICES={visible!r} shows"
                f" {len(shown)} devices: name one of these"
            )
    return {"CUDA_VISIBLE_DEVICES": ",".join(shown[int(ordinal)] for ordinal in ordinals)}


def daemon_command(
    pool: PoolConfig, socket_path: Path, parking: ParkingConfig | None = None, rank: int = 0
) -> list[str]:
    """The command line of the daemon of the pool's device that ranks of this number use."""
    optional: list[str] = []
    if pool.host_budget_bytes is not None or len(pool.devices) > 1:
        # Ranks are of a size, and so are their images.
        each_bytes = int(pool.host_budget_bytes or machine_memory_bytes()) // len(pool.devices)
        optional += ["--host-budget-bytes", str(each_bytes)]
    if parking is not None:
        optional += ["--parking-folder", parking.folder]
        if parking.limit_bytes is not None:
            optional += ["--parking-limit-bytes", str(int(parking.limit_bytes))]
    if pool.policy != "turns":
        optional += ["--policy", pool.policy]
        optional += ["--ttft-ms", f"{pool.ttft_ms:g}", "--tbt-ms", f"{pool.tbt_ms:g}"]
        if pool.patience_ms is not None:
            optional += ["--patience-ms", f"{pool.patience_ms:g}"]
        if pool.record is not None:
            optional += ["--record", pool.record]
    kind = pool.devices[0].partition(":")[0]
    # One of those that are visible: see device_environment.
    device = f"{kind}:{rank}" if kind == "cuda" and len(pool.devices) > 1 else kind
    return [
        *(sys.executable, "-m", "gpupool", "daemon"),
        *("--device", device),
        *("--budget-bytes", str(int(pool.budget_bytes))),
        *("--page-bytes", str(int(pool.page_bytes))),
        *("--turn-ms", str(pool.turn_ms)),
        *("--min-tokens", str(pool.min_tokens)),
        *("--revoke-timeout-s", f"{pool.revoke_timeout_s:g}"),
        *optional,
        *("--socket", str(socket_path)),
    ]


def engine_command(
    model: ModelConfig, port: int, sockets: Sequence[Path], images: ImagesConfig | None = None
) -> list[str]:
    """The command line of the model's vLLM server, which listens on 127.0.0.1:`port`.

    It has a rank in the pool of each daemon of ``sockets``.
    """
    names = [str(path) for path in sockets]
    pooled: dict[str, str | int | float | list[str]] = {
        "socket": names[0] if len(names) == 1 else names,
        "model": model.name,
    }
    if model.kv_store_bytes is not None:
        pooled["kv_store_bytes"] = int(model.kv_store_bytes)
    if model.cudagraph_bytes is not None:
        pooled["cudagraph_bytes"] = int(model.cudagraph_bytes)
    if model.loading_bytes is not None:
        pooled["loading_bytes"] = int(model.loading_bytes)
    if model.verify != "always":
        pooled["verify"] = model.verify
    if model.share:
        pooled["share"] = True
    own = {"ttft_ms": model.ttft_ms, "tbt_ms": model.tbt_ms}
    pooled |= {name: value for name, value in own.items() if value is not None}
    if model.weight != 1.0:
        pooled["weight"] = model.weight
    if images is not None and images.folder is not None:
        pooled["image_cache"] = images.folder
    if images is not None and images.limit_bytes is not None:
        pooled["image_cache_bytes"] = int(images.limit_bytes)
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model.model),
        *("--served-model-name", model.name),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--worker-cls", "gpupool.vllm.Worker"),
        *("--kv-cache-memory-bytes", str(int(model.kv_cache_bytes))),
        *("--additional-config", json.dumps({"gpupool": pooled})),
    ]
    args = {name.replace("_", "-"): value for name, value in model.args.items()}
    if images is not None:
        args.setdefault("load-format", "gpupool")
    if len(names) > 1 and "tp" not in args:
        args["tensor-parallel-size"] = len(names)
    for name, value in args.items():
        command += _option(name, value)
    return command


def _option(name: str, value: ArgValue) -> list[str]:
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *(str(item) for item in value)]
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    # One word, so that a value that begins with a dash is not taken for an option.
    return [f"--{name}={text}"]


def engine_environment(
    model: ModelConfig,
    inherited: Mapping[str, str],
    private_dir: Path,
    start_timeout_s: float,
    api_key: str,
) -> dict[str, str]:
    """The engine's environment: its sockets and temporary files go to `private_dir`.

    Its port is open to all users of the machine, so it answers only to who knows `api_key`.
    """
    environment = dict(inherited)
    # It would override --kv-cache-memory-bytes on the CPU platform.
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    environment |= {
        "TMPDIR": str(private_dir),
        "VLLM_RPC_BASE_PATH": str(private_dir),
        "VLLM_API_KEY": api_key,
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(_STEP_TIMEOUT_S),
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(start_timeout_s)),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(_KEEP_ALIVE_S),
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if model.is_local:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment
