"""pool.yaml: what it may say, read into frozen structs.

Whatever is wrong is found here, before a process is started, and reported as one sentence
naming the file, the key and what to do.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from gpupool.serve import checkpoint
from gpupool.serve.failures import ConfigError
from gpupool.serve.sizes import GIB, MIB, ByteSize, format_size, parse_size
from gpupool.serve.yaml_file import read_yaml

# A value passed to vLLM: `--key value`; true is a bare flag, false is `--no-key`.
ArgValue = bool | int | float | str | list[int | float | str] | dict[str, Any]

Milliseconds = Annotated[float, Meta(gt=0, le=1e6)]

_SMALLEST_PAGE_BYTES = 2 * MIB
_DEVICE = re.compile(r"host|cuda(:[0-9]{1,3})?")
_ARG = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
# What gpupool itself must decide for the engines to share a pool behind one address.
_RESERVED_ARGS = frozenset(
    {
        *("additional-config", "api-key", "config", "headless", "host", "kv-cache-memory-bytes"),
        *("kv-transfer-config", "kv-offloading-size", "model", "port", "root-path"),
        *("served-model-name", "ssl-ca-certs", "ssl-certfile", "ssl-keyfile", "uds", "worker-cls"),
    }
)
_TENSOR_PARALLEL_ARGS = frozenset({"tensor-parallel-size", "tp"})
_OTHER_PARALLEL_ARGS = frozenset(
    {
        *("pipeline-parallel-size", "pp", "data-parallel-size"),
        *("dp", "decode-context-parallel-size", "dcp", "prefill-context-parallel-size", "pcp"),
    }
)


class PoolConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The memory that all models share, and how turns are given."""

    device: str | Annotated[list[str], Meta(min_length=2, max_length=64)]
    """Or several, for engines that have a rank on each."""
    budget_bytes: ByteSize = field(name="budget")
    """Of each device."""
    page_bytes: ByteSize = field(name="page", default=ByteSize(64 * MIB))
    host_budget_bytes: ByteSize | None = field(name="host_budget", default=None)
    """Host memory for images and saved KV, of all devices together; by default the machine's."""
    policy: Literal["turns", "deadlines", "fcfs"] = "turns"
    """Who runs next."""
    ttft_ms: Milliseconds = 10_000.0
    """With deadlines: when the first token of a request is due after it came."""
    tbt_ms: Milliseconds = 100.0
    """With deadlines: how long after that each further token is due."""
    patience_ms: Milliseconds | None = None
    """A request whose model had no turn for so long is answered with 503; by default never."""
    record: Annotated[str, Meta(min_length=1)] | None = None
    """A file, absolute after loading, for what a policy of requests decides."""
    turn_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 200
    min_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 8
    revoke_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 30.0

    @property
    def devices(self) -> list[str]:
        """One or more, in the order of ranks."""
        return [self.device] if isinstance(self.device, str) else self.device


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The one address that clients use; port 0 picks a free one."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    max_body_bytes: ByteSize = field(name="max_body", default=ByteSize(16 * MIB))


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One model: `model` is an absolute path after loading, or a hub id."""

    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
    model: Annotated[str, Meta(min_length=1)]
    kv_cache_bytes: ByteSize = field(name="kv_cache")
    kv_store_bytes: ByteSize | None = field(name="kv_store", default=None)
    """Host memory for copies of its KV blocks, at most."""
    cudagraph_bytes: ByteSize | None = field(name="cudagraphs", default=None)
    """Room in the pool for its CUDA graphs, whose memory is outside without."""
    loading_bytes: ByteSize | None = field(name="loading", default=None)
    """Room in the pool that its weights are loaded into; without, beside the pool."""
    verify: Literal["always", "sample", "off"] = "always"
    """Which copies of a swap-in are held against their digests."""
    share: bool = False
    """Whether it has pages and host memory in common with models of the same weights."""
    ttft_ms: Milliseconds | None = None
    """When the first token of its requests is due, where that is not as for all."""
    tbt_ms: Milliseconds | None = None
    """How long after that each further one is."""
    weight: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0
    """What it counts beside others where not all can be on time."""
    args: dict[str, ArgValue] = {}

    @property
    def is_local(self) -> bool:
        """Whether `model` is a directory on this machine rather than a hub id."""
        return Path(self.model).is_absolute()


class ImagesConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Engines keep images of their processed weights, and start from them the next time."""

    folder: Annotated[str, Meta(min_length=1)] | None = None
    """Absolute after loading; by default the worker's own, in the user's cache folder."""
    limit_bytes: ByteSize | None = field(name="limit", default=None)
    """What all images there may have together; those used least recently go."""


class ParkingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Images of the models used least recently go to files when host memory runs short."""

    folder: Annotated[str, Meta(min_length=1)]
    """Absolute after loading; private, on a fast disk."""
    limit_bytes: ByteSize | None = field(name="limit", default=None)
    """What all files there may have together; by default what the disk has."""


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """All of pool.yaml."""

    pool: PoolConfig
    models: Annotated[list[ModelConfig], Meta(min_length=1)]
    server: ServerConfig = ServerConfig()
    images: ImagesConfig | None = None
    parking: ParkingConfig | None = None


def load_config(path: Path) -> Config:
    """Reads and checks `path`; relative checkpoint paths are taken from its directory.

    Raises ConfigError with one sentence: the file, the key, what to do.
    """
    try:
        config = msgspec.convert(read_yaml(path), Config, dec_hook=_decode_size)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error))}.") from None
    try:
        _check_pool(config.pool)
        if config.parking is not None and len(config.pool.devices) > 1:
            raise ValueError("parking: is for pools of one device; remove it")
        models = _check_models(config, path.absolute().parent)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}.") from None
    pool, images, parking = config.pool, config.images, config.parking
    base = path.absolute().parent
    if pool.record is not None:
        pool = msgspec.structs.replace(pool, record=str(base / Path(pool.record).expanduser()))
    if images is not None and images.folder is not None:
        folder = base / Path(images.folder).expanduser()
        images = msgspec.structs.replace(images, folder=str(folder))
    if parking is not None:
        folder = base / Path(parking.folder).expanduser()
        parking = msgspec.structs.replace(parking, folder=str(folder))
    return msgspec.structs.replace(config, pool=pool, models=models, images=images, parking=parking)


def _decode_size(kind: type, raw: object) -> object:
    if kind is ByteSize:
        return parse_size(raw)
    raise NotImplementedError(f"no decoder for {kind}")


def _explain(problem: str) -> str:
    """msgspec's complaint as a sentence that starts with the key's own path."""
    reason, _, where = problem.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", reason):
        full = f"{key}.{match[1]}" if key else match[1]
        known = ", ".join(known.encode_name for known in msgspec.structs.fields(_struct_at(key)))
        return f"{full} is not a known key; remove it or write one of {known}"
    if match := re.fullmatch(r"Object missing required field `(.*)`", reason):
        full = f"{key}.{match[1]}" if key else match[1]
        return f"{full} is missing; add it"
    if not key:
        return f"{reason}; write the keys pool, server and models at the top"
    if key == "models" and "length" in reason:
        return "models is empty; name at least one model"
    advice = "" if ";" in reason else "; correct that value"
    return f"{key}: {reason}{advice}"


def _struct_at(key: str) -> type[Struct]:
    if key.startswith("models"):
        return ModelConfig
    sections: dict[str, type[Struct]] = {
        "pool": PoolConfig,
        "server": ServerConfig,
        "images": ImagesConfig,
        "parking": ParkingConfig,
    }
    return sections.get(key, Config)


def _check_pool(pool: PoolConfig) -> None:
    for device in pool.devices:
        if not _DEVICE.fullmatch(device):
            raise ValueError(f"pool.device: {device!r} is unknown; write host, cuda or cuda:N")
    if len({device.partition(":")[0] for device in pool.devices}) > 1:
        raise ValueError("pool.device: devices of one pool are of one kind")
    ordinals = [int(device.partition(":")[2] or 0) for device in pool.devices]
    if pool.devices[0] != "host" and len(set(ordinals)) < len(ordinals):
        raise ValueError("pool.device: names a device twice")
    page, budget = pool.page_bytes, pool.budget_bytes
    if page < _SMALLEST_PAGE_BYTES or page & (page - 1) or page > 64 * GIB:
        raise ValueError(
            f"pool.page: {format_size(page)} cannot be mapped; write a power of two that is a"
            " multiple of 2MiB, such as 64MiB"
        )
    if budget < page:
        raise ValueError(
            f"pool.budget: {format_size(budget)} is less than one page of {format_size(page)};"
            " raise pool.budget or lower pool.page"
        )
    for key in ("record", "patience_ms"):
        if getattr(pool, key) is not None and pool.policy == "turns":
            raise ValueError(f"pool.{key}: turns know of no requests; remove it or set pool.policy")
    if len(pool.devices) > 1 and pool.policy != "turns":
        raise ValueError(f"pool.policy: {pool.policy} choose for one device; use turns")


def _check_models(config: Config, base: Path) -> list[ModelConfig]:
    names: dict[str, int] = {}
    checked = []
    for index, model in enumerate(config.models):
        key = f"models[{index}]"
        if model.name in names:
            raise ValueError(
                f"{key}.name: {model.name!r} is already the name of models[{names[model.name]}];"
                " give each model its own name"
            )
        names[model.name] = index
        budget = config.pool.budget_bytes
        for name, size, beside in (
            ("kv_cache", model.kv_cache_bytes, ""),
            ("cudagraphs", model.kv_cache_bytes + (model.cudagraph_bytes or 0), " with kv_cache"),
            ("loading", model.loading_bytes or 0, ""),
        ):
            if size > budget:
                raise ValueError(
                    f"{key}.{name}: needs {size} bytes{beside} and pool.budget has {budget} bytes;"
                    f" lower {name} or raise pool.budget"
                )
        own = [name for name in ("ttft_ms", "tbt_ms") if getattr(model, name) is not None]
        if own and config.pool.policy != "deadlines":
            raise ValueError(f"{key}.{own[0]}: only deadlines go by it; set pool.policy to it")
        devices = len(config.pool.devices)
        if devices > 1 and any((model.share, model.kv_store_bytes, model.loading_bytes)):
            raise ValueError(
                f"{key}: share, kv_store and loading are for pools of one device; remove them"
            )
        _check_args(key, model.args, devices)
        try:
            directory = checkpoint.locate(model.model, base)
            if directory is not None:
                checkpoint.check(directory)
                model = msgspec.structs.replace(model, model=str(directory))
        except (OSError, ValueError) as error:
            raise ValueError(f"{key}.model: {error}") from None
        checked.append(model)
    return checked


def _check_args(key: str, args: dict[str, ArgValue], devices: int) -> None:
    seen: dict[str, str] = {}
    for name in args:
        if not _ARG.fullmatch(name):
            raise ValueError(f"{key}.args: {name!r} is not an option; omit dashes: max-model-len")
        option = name.replace("_", "-")
        if option in _RESERVED_ARGS:
            raise ValueError(f"{key}.args.{name}: gpupool sets this option itself; remove it")
        if option in seen:
            raise ValueError(
                f"{key}.args.{name}: is the same option as {seen[option]}; keep one of them"
            )
        if option in _TENSOR_PARALLEL_ARGS and args[name] != devices:
            raise ValueError(
                f"{key}.args.{name}: engines have a rank on each of the pool's devices, which are"
                f" {devices}; remove this option, or name others in pool.device"
            )
        if option in _OTHER_PARALLEL_ARGS and args[name] != 1:
            raise ValueError(
                f"{key}.args.{name}: engines in a pool are tensor parallel alone; remove it"
            )
        seen[option] = name
